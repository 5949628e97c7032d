"""Simulated nodes whose pods are processes of this machine: the part of kubelet, kube-proxy and DNS, without root.

Real are the control plane, the programs in the pods, their manifests, credentials, probes, grace periods and
addresses. Not real are the nodes, which kwok keeps Ready; the containers, which have a network and a file system of
their own in one user namespace, and no users, limits, liveness probes or images; and PodResources, which nobody serves.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from agent.actions.api import STRATEGIC_PATCH
from tests.cluster.build import assets
from tests.cluster.control_plane import ControlPlane
from tests.nodes.dns import records

ROOT = Path(__file__).parents[2]
RUNTIME = "process://1"  # what the nodes call their container runtime
_GATEWAY, _PODS, _SERVICES = "10.244.255.254", "10.244.0.0/16", "10.96.0.0/16"
_NAMESPACES = ("--user", "--map-root-user", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
_LOOK_S, _BACK_OFF_S = 0.1, 1.0
_PATH = f"{sys.prefix}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_HIDDEN = ("/dev", "/etc", "/run", "/tmp", "/var")  # a container has its own
# Arguments: the new root, pairs of a source and where it is mounted, --, the program.
_CONTAINER = r"""
set -e
root=$1; shift
mount -t tmpfs root "$root"
for one in /*; do
  case $one in /dev | /etc | /run | /tmp | /var) continue ;; esac
  if [ -L "$one" ]; then cp -P "$one" "$root$one"
  elif [ -d "$one" ]; then mkdir "$root$one"; mount --rbind "$one" "$root$one"; fi
done
cd "$root"
mkdir -m 1777 tmp; mkdir -p dev/shm etc run var/tmp; ln -s ../run var/run
for one in null zero full random urandom; do touch dev/$one; mount --bind /dev/$one dev/$one; done
ln -s /proc/self/fd dev/fd
cp /etc/passwd /etc/group /etc/ld.so.cache etc
echo 'hosts: files' > etc/nsswitch.conf; echo 'multi on' > etc/host.conf; ln -s names/hosts etc/hosts
while [ "$1" != -- ]; do
  if [ -d "$1" ]; then mkdir -p "$root$2"; else mkdir -p "$root$(dirname "$2")"; touch "$root$2"; fi
  mount --rbind "$1" "$root$2"; shift 2
done
shift
hostname "$HOSTNAME"
cd /
exec chroot "$root" "$@"
"""

Object = dict[str, Any]


def enter(module: str, options: list[str]) -> None:
    """Go on as ``python -m module --inside`` in namespaces of our own; RuntimeError where that isn't allowed."""
    os.environ["PATH"] = _PATH
    tried = subprocess.run(["unshare", *_NAMESPACES, "ip", "link", "set", "lo", "up"], capture_output=True, text=True)
    if tried.returncode:
        raise RuntimeError(f"this machine allows no user namespaces (unshare: {tried.stderr.strip()[-200:]})")
    assets()  # built with the network that is out of reach inside
    os.execvp("unshare", ["unshare", *_NAMESPACES, sys.executable, "-m", module, "--inside", *options])


@contextlib.contextmanager
def simulated(
    nodes: int, gpus: int, images: Mapping[str, list[str]], programs: Mapping[str, Path] | None = None
) -> Iterator[Site]:
    """Nodes n1, n2 …; ``images`` are entry points by image, each run by this Python or the one in the folder
    ``programs``. Only after ``enter``.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="gpu-health-agent-pods-") as folder:
        _ip(
            "link set lo up",
            f"addr add {_SERVICES} dev lo",
            "link add br0 type bridge",
            f"addr add {_GATEWAY}/16 dev br0",
            "link set br0 up",
        )
        site = Site(Path(folder), images, programs or {})
        site.plane.up(nodes=0)
        try:
            site.begin([f"n{number}" for number in range(1, nodes + 1)], gpus)
            yield site
        except BaseException:
            for log in sorted((site.folder / "logs").iterdir()):
                print(f"{log.name}: {log.read_text(errors='replace')[-1500:]}", file=sys.stderr)
            raise
        finally:
            site.end()
            site.plane.down()


class Site:
    """The control plane, the pods that run, and the ways to them."""

    def __init__(self, folder: Path, images: Mapping[str, list[str]], programs: Mapping[str, Path]) -> None:
        self.folder, self.images, self.programs = folder, images, programs
        self.plane = ControlPlane(folder / "plane", assets(), _GATEWAY, pods=False)
        self.nodes: list[str] = []
        self.shared = folder / "shared"
        for made in (self.shared, folder / "logs"):
            made.mkdir()
        self.pods: dict[str, Pod] = {}
        self.services = Services()
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._turn, args=(what,)) for what in (self._follow, self._route)]

    def begin(self, nodes: list[str], gpus: int) -> None:
        self.nodes = nodes
        for name in nodes:
            self.plane.add_node(name, gpus, runtime=RUNTIME)
            Node(self.folder / name)
        self.plane.wait("nodes Ready", lambda: all(self.plane.ready(name) for name in nodes))
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self._over.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()
        for pod in self.pods.values():
            pod.grace_s = 0.0
        for pod in self.pods.values():
            pod.join()

    def _turn(self, what: Any) -> None:
        while not self._over.wait(_LOOK_S):
            with contextlib.suppress(OSError, RuntimeError, http.client.HTTPException):
                what()

    def _follow(self) -> None:
        """Start what was bound to a node, end what is to go, forget what is gone."""
        there = {
            pod["metadata"]["uid"]: pod
            for pod in self.plane.must("GET", "/api/v1/pods")["items"]
            if pod["spec"].get("nodeName") in self.nodes
        }
        for uid, one in there.items():
            if uid not in self.pods and not one["metadata"].get("deletionTimestamp"):
                self.pods[uid] = Pod(self, one)
                self.pods[uid].start()
            elif uid not in self.pods:
                delete(self.plane, one)
            elif one["metadata"].get("deletionTimestamp"):
                self.pods[uid].grace_s = one["metadata"].get("deletionGracePeriodSeconds", 0)
        for uid in self.pods.keys() - there.keys():
            gone = self.pods.pop(uid)
            gone.grace_s = 0.0
            gone.kill()

    def _route(self) -> None:
        """Names and Service addresses, as the control plane has them now."""
        services = self.plane.must("GET", "/api/v1/services")["items"]
        slices = self.plane.must("GET", "/apis/discovery.k8s.io/v1/endpointslices")["items"]
        self.services.set(services, slices)
        found = sorted(records(services, slices))
        for pod in list(self.pods.values()):
            own = [(name.removesuffix(pod.zone), address) for name, address in found if name.endswith(pod.zone)]
            pod.know([*own, *found])


class Node:
    """What a node has of its own: a kernel log that takes what user space writes, as /dev/kmsg does."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._log = folder / "kmsg"
        self._log.touch()
        os.mkfifo(folder / "kmsg.written")
        self._written = os.fdopen(os.open(folder / "kmsg.written", os.O_RDWR))
        threading.Thread(target=self._copy, daemon=True).start()

    def _copy(self) -> None:
        for number in itertools.count(1):
            text = self._written.readline().rstrip("\n")
            with self._log.open("a") as log:
                log.write(f"12,{number},{int(time.monotonic() * 1e6)},-;{text}\n")  # facility 1: user space


class Pod(threading.Thread):
    """One pod's life: volumes, network, containers, probes, and its end in its grace period."""

    _numbers = itertools.count(1)

    def __init__(self, site: Site, one: Object) -> None:
        super().__init__(daemon=True)
        self.site, self.one, self.spec = site, one, one["spec"]
        self.meta, number = one["metadata"], next(Pod._numbers)
        self.path = f"/api/v1/namespaces/{self.meta['namespace']}/pods/{self.meta['name']}"
        self._knowing, self.zone = threading.Lock(), f".{self.meta['namespace']}.svc.cluster.local"
        self.host = self.spec.get("hostname") or self.meta["name"]
        self.address, self._cable = f"10.244.{number // 250}.{number % 250 + 1}", f"pod{number}"
        self.folder: Path = site.folder / "pods" / self.meta["uid"]
        self.node: Path = site.folder / self.spec["nodeName"]
        self.grace_s: float | None = None  # once it is to go
        self._at, self._told, self._since = _now(), "", {"Ready": ("", "")}
        self._sandbox: subprocess.Popen[bytes] | None = None
        self.containers = [Container(self, spec) for spec in self.spec["containers"]]

    def run(self) -> None:
        try:
            self._begin()
            while self.grace_s is None:
                for container in self.containers:
                    container.look(self.spec.get("restartPolicy") == "Always")
                self._tell()
                time.sleep(_LOOK_S)
            self._leave(time.monotonic() + self.grace_s)
        except (OSError, RuntimeError, KeyError, http.client.HTTPException, subprocess.SubprocessError) as error:
            print(f"{self.path}: {error!r}", file=sys.stderr)
        finally:
            self.kill()
        with contextlib.suppress(OSError, RuntimeError, http.client.HTTPException):
            self._tell()
            delete(self.site.plane, self.one)

    def kill(self) -> None:
        for container in self.containers:
            container.signal(signal.SIGKILL)
        if self._sandbox is not None:
            self._sandbox.kill()
            self._sandbox.wait()

    def know(self, names: list[tuple[str, str]]) -> None:
        """Names and addresses, its own first, and that with its Service's as the kubelet writes it."""
        own = f"{self.host}.{self.spec['subdomain']}{self.zone} {self.host}" if "subdomain" in self.spec else self.host
        text = "".join(f"{address} {name}\n" for name, address in [(own, self.address), *names])
        (hosts := self.folder / "names" / "hosts").parent.mkdir(parents=True, exist_ok=True)
        with self._knowing:
            if not hosts.exists() or hosts.read_text() != text:
                fresh = hosts.with_name("hosts.new")
                fresh.write_text(text)
                fresh.rename(hosts)  # whoever looks a name up finds a whole file

    def enter(self) -> list[str]:
        """Begins a command line that runs in the pod's network."""
        assert self._sandbox is not None
        return ["setpriv", "--pdeathsig", "KILL", "nsenter", f"--net=/proc/{self._sandbox.pid}/ns/net"]

    def _begin(self) -> None:
        self.know([])
        alone = ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "sleep", "inf"]
        sandbox = self._sandbox = subprocess.Popen(alone)
        own = os.readlink("/proc/self/ns/net")
        while os.readlink(f"/proc/{sandbox.pid}/ns/net") == own:
            time.sleep(0.01)
        _ip(
            f"link add {self._cable} type veth peer name eth0 netns {sandbox.pid}",
            f"link set {self._cable} master br0 up",
        )
        _ip(
            "link set lo up",
            f"addr add {self.address}/16 dev eth0",
            "link set eth0 up",
            f"route add default via {_GATEWAY}",
            where=self.enter(),
        )
        volumes = {volume["name"]: volume for volume in self.spec.get("volumes") or ()}
        for container in self.containers:
            container.start({name: self._volume(volume) for name, volume in volumes.items()})

    def _volume(self, volume: Object) -> Path:
        """A folder with what the volume holds, made once; of the host's, the node's own."""
        if found := volume.get("hostPath"):
            path = Path(found["path"])
            if path.is_relative_to(self.site.shared) or path == Path("/dev/kmsg"):
                return path
            (there := self.node / str(path).lstrip("/")).mkdir(parents=True, exist_ok=True)
            return there
        folder: Path = self.folder / "volumes" / volume["name"]
        if not folder.exists():
            folder.mkdir(parents=True)
            for source in volume.get("projected", {}).get("sources", [volume]):
                for name, data in self._content(source).items():
                    (folder / name).write_bytes(data)
        return folder

    def _content(self, source: Object) -> dict[str, bytes]:
        home = f"/api/v1/namespaces/{self.meta['namespace']}"
        if found := source.get("configMap"):
            data = self.site.plane.must("GET", f"{home}/configmaps/{found['name']}")["data"]
            return {item["path"]: data[item["key"]].encode() for item in found.get("items") or ()} or {
                name: text.encode() for name, text in data.items()
            }
        if found := source.get("serviceAccountToken"):
            bound = {"kind": "Pod", "apiVersion": "v1", "name": self.meta["name"], "uid": self.meta["uid"]}
            asked = {"spec": {"boundObjectRef": bound, "expirationSeconds": found.get("expirationSeconds", 3600)}}
            path = f"{home}/serviceaccounts/{self.spec['serviceAccountName']}/token"
            return {found["path"]: self.site.plane.must("POST", path, asked)["status"]["token"].encode()}
        if found := source.get("downwardAPI"):
            return {item["path"]: self.field(item["fieldRef"]["fieldPath"]).encode() for item in found["items"]}
        return {}

    def field(self, path: str) -> str:
        if path == "metadata.annotations":
            return "".join(f"{key}={json.dumps(text)}\n" for key, text in self.meta.get("annotations", {}).items())
        if path == "status.podIP":
            return self.address
        if named := re.fullmatch(r"metadata\.(labels|annotations)\['(.+)'\]", path):
            return str(self.meta.get(named[1], {}).get(named[2], ""))
        first, _, then = path.partition(".")
        return str(self.one[first][then])

    def _tell(self) -> None:
        """The pod's status, when it is another than was told."""
        ended = [container.code for container in self.containers]
        over = all(code is not None for code in ended) and not (
            self.spec.get("restartPolicy") == "Always" and self.grace_s is None
        )
        ready = not over and all(container.ready for container in self.containers)
        word = str(ready)
        if self._since["Ready"][0] != word:
            self._since["Ready"] = (word, _now())
        status: Object = {
            "phase": "Running" if not over else "Failed" if any(ended) else "Succeeded",
            "hostIP": _GATEWAY,
            "podIP": self.address,
            "podIPs": [{"ip": self.address}],
            "startTime": self._at,
            "conditions": [
                {"type": kind, "status": word, "lastTransitionTime": self._since["Ready"][1]}
                for kind in ("Ready", "ContainersReady")
            ],
            "containerStatuses": [container.status() for container in self.containers],
        }
        if (text := json.dumps(status)) != self._told:
            self.site.plane.request(
                "PATCH",
                f"{self.path}/status",
                {"metadata": {"uid": self.meta["uid"]}, "status": status},
                STRATEGIC_PATCH,
            )
            self._told = text

    def _leave(self, end: float) -> None:
        living = [container for container in self.containers if container.code is None]
        pause_s = max([container.lingers_s for container in living], default=0)
        time.sleep(max(0.0, min(pause_s, end - time.monotonic())))
        for container in living:
            container.signal(signal.SIGTERM)
        while any(container.poll() is None for container in living) and time.monotonic() < end:
            time.sleep(0.02)


class Container:
    """A process, and what its probes say."""

    def __init__(self, pod: Pod, spec: Object) -> None:
        self._pod, self.spec = pod, spec
        self.code: int | None = None
        self.ready, self._started_up, self._restarts = False, False, 0
        self._process: subprocess.Popen[bytes] | None = None
        self._mounts: list[str] = []
        self._due, self._failures, self._began = 0.0, 0, ""
        self.lingers_s = spec.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        self._last_words = pod.folder / f"{spec['name']}.last-words"

    def start(self, volumes: Mapping[str, Path]) -> None:
        self._last_words.touch()
        found = {"/etc/names": self._pod.folder / "names", "/dev/termination-log": self._last_words}
        own = self._programs
        for path in {str(ROOT), sys.prefix, sys.base_prefix, *([str(own.parent)] if own else ())}:
            if path.startswith(_HIDDEN):
                found[path] = Path(path)
        for mount in self.spec.get("volumeMounts") or ():
            source = volumes[mount["name"]]
            if source == Path("/dev/kmsg"):
                source = self._pod.node / ("kmsg" if mount.get("readOnly") else "kmsg.written")
            found[mount["mountPath"]] = source
        if self._pod.spec.get("hostPID") and self._pod.spec.get("restartPolicy") == "Never":
            found["/proc"] = self._processes()
        self._mounts = [str(word) for path, source in sorted(found.items()) for word in (source, path)]
        self._exec()

    def look(self, again: bool) -> None:
        """Start anew what ended, if it is to run; ask the probe that is due."""
        if self.poll() is not None:
            self.ready = self._started_up = False
            if again:
                time.sleep(_BACK_OFF_S)
                self._restarts += 1
                self._exec()
            return
        probe = self.spec.get("readinessProbe") if self._started_up else self.spec.get("startupProbe")
        if probe is None:
            self.ready = self.ready or self._started_up
            self._started_up = True
        elif time.monotonic() >= self._due:
            self._due = time.monotonic() + probe.get("periodSeconds", 10)
            if self._answers(probe):
                self._failures, self.ready = 0, self._started_up
                if not self._started_up:
                    self._started_up, self._due = True, 0.0
            else:
                self._failures += 1
                self.ready = self.ready and self._failures < probe.get("failureThreshold", 3)

    def signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                if number == signal.SIGKILL:
                    os.killpg(self._process.pid, number)
                else:
                    self._process.send_signal(number)
            if number == signal.SIGKILL:
                self._process.wait()
        self.poll()

    def poll(self) -> int | None:
        code = None if self._process is None else self._process.poll()
        self.code = None if code is None else code if code >= 0 else 128 - code
        return self.code

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None and self._process.poll() is None else 0

    def status(self) -> Object:
        state: Object = {"running": {"startedAt": self._began}}
        if self.code is not None:
            state = {
                "terminated": {
                    "exitCode": self.code,
                    "reason": "Error" if self.code else "Completed",
                    "message": self._last_words.read_text()[:4096],
                }
            }
        return {
            "name": self.spec["name"],
            "image": self.spec["image"],
            "imageID": "",
            "state": state,
            "ready": self.ready,
            "started": self._started_up,
            "restartCount": self._restarts,
        }

    def _exec(self) -> None:
        pod, name = self._pod, self.spec["name"]
        plane = pod.site.plane
        environment = {
            "PATH": f"{self._programs}:{_PATH}" if self._programs else _PATH,
            "HOME": "/",
            "PYTHONPATH": str(ROOT),  # its image is this tree, wherever the environment's own comes from
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "KUBERNETES_SERVICE_HOST": plane.address,
            "KUBERNETES_SERVICE_PORT": str(plane.port),
            "HOSTNAME": pod.host,
        }
        for one in self.spec.get("env") or ():
            ref = one.get("valueFrom", {}).get("fieldRef")
            text = pod.field(ref["fieldPath"]) if ref else one.get("value", "")
            environment[one["name"]] = re.sub(r"\$\((\w+)\)", lambda found: environment.get(found[1], found[0]), text)
        program = [*(self.spec.get("command") or pod.site.images[self.spec["image"]]), *(self.spec.get("args") or ())]
        (root := pod.folder / f"{name}.root").mkdir(exist_ok=True)
        self._began, self.code = _now(), None
        enter = [
            *pod.enter(),
            "unshare",
            "--mount",
            "--uts",
            "sh",
            "-c",
            _CONTAINER,
            "sh",
            str(root),
            *self._mounts,
            "--",
        ]
        with (pod.site.folder / "logs" / f"{pod.meta['name']}.{name}").open("ab") as log:
            self._process = subprocess.Popen(
                [*enter, *program],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )

    @property
    def _programs(self) -> Path | None:
        return self._pod.site.programs.get(self.spec["image"])

    def _answers(self, probe: Object) -> bool:
        asked = probe["httpGet"]
        ports = {port.get("name"): port["containerPort"] for port in self.spec.get("ports") or ()}
        port = ports.get(asked["port"], asked["port"])
        connection = http.client.HTTPConnection(self._pod.address, port, timeout=probe.get("timeoutSeconds", 1))
        try:
            connection.request("GET", asked["path"])
            return connection.getresponse().status < 400
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _processes(self) -> Path:
        """The node's processes as its /proc would name their pods; there are no cgroups without root."""
        folder = self._pod.folder / "proc"
        for pod in list(self._pod.site.pods.values()):
            for container in pod.containers if pod.node == self._pod.node else ():
                if container.pid:
                    (folder / str(container.pid)).mkdir(parents=True)
                    (folder / str(container.pid) / "cgroup").write_text(f"0::/kubepods/pod{pod.meta['uid']}/x\n")
        return folder


class Services(threading.Thread):
    """A Service's address takes connections and hands each to one of its ready pods."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._loop, self._ready = asyncio.new_event_loop(), dict[tuple[str, int], list[tuple[str, int]]]()
        self._listening = dict[tuple[str, int], asyncio.Server]()
        self.start()

    def run(self) -> None:
        self._loop.run_forever()

    def set(self, services: list[Object], slices: list[Object]) -> None:
        found = dict[tuple[str, int], list[tuple[str, int]]]()
        for service in services:
            namespace, name = service["metadata"]["namespace"], service["metadata"]["name"]
            own = [
                one
                for one in slices
                if one["metadata"]["namespace"] == namespace
                and one["metadata"]["labels"].get("kubernetes.io/service-name") == name
            ]
            for port in service["spec"].get("ports") or () if service["spec"].get("clusterIP") != "None" else ():
                found[service["spec"]["clusterIP"], port["port"]] = [
                    (endpoint["addresses"][0], there["port"])
                    for one in own
                    for there in one.get("ports") or ()
                    if there.get("name", "") == port.get("name", "")
                    for endpoint in one.get("endpoints") or ()
                    if endpoint["conditions"].get("ready")
                ]
        self._ready = found
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)

    async def _listen(self) -> None:
        for key in self._ready.keys() - self._listening.keys():
            self._listening[key] = await asyncio.start_server(partial(self._carry, key), *key, backlog=1024)
        for key in self._listening.keys() - self._ready.keys():
            self._listening.pop(key).close()

    async def _carry(self, key: tuple[str, int], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection(*random.choice(self._ready[key]))
        except (OSError, LookupError):
            writer.transport.abort()
            return
        await asyncio.gather(_pump(reader, back), _pump(there, writer))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    with contextlib.suppress(OSError, RuntimeError):
        writer.close()


def delete(plane: ControlPlane, one: Object) -> None:
    """The object of a pod that has ended, if somebody asked for that."""
    path = f"/api/v1/namespaces/{one['metadata']['namespace']}/pods/{one['metadata']['name']}"
    plane.request("DELETE", path, {"gracePeriodSeconds": 0, "preconditions": {"uid": one["metadata"]["uid"]}})


def _ip(*lines: str, where: list[str] | None = None) -> None:
    subprocess.run([*(where or ()), "ip", "-batch", "-"], input="\n".join(lines), check=True, text=True)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
