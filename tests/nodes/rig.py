"""Several real nodes and their control plane on this one machine, gone without a trace afterwards. Root, Debian 12."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from tests.cluster.build import assets
from tests.cluster.control_plane import ControlPlane
from tests.image.build import PAUSE
from tests.nodes.dns import dns
from tests.packages import need

_PACKAGES = ("conntrack", "containerd", "containernetworking-plugins", "iproute2", "nftables", "procps", "runc")
_ROOT = Path(__file__).parents[2]
_PLANE = "10.255.0.1"
_LEASE_S = 8
_NEW_NETWORK = 0x40000000  # CLONE_NEWNET
_PREFIX = "gpu-health-agent-rig-"  # of the folder and the cgroups, with the process it belongs to


@contextmanager
def rig(nodes: int = 3, gpus: int = 8, images: Iterable[Path] = (), names: bool = False) -> Iterator[Rig]:
    """Real nodes n1, n2 …, Ready, each with ``gpus`` made-up GPUs, and ``images`` (docker archives) on them.

    ``images`` must hold the pod sandbox's: ``tests.image.build.images()`` is it and the agent's. With ``names``, DNS
    knows the Services. Within the context this thread and what it starts are in the control plane's network, from
    which pods, nodes and the API server are reached and nothing else. Several rigs at once don't disturb each other.
    """
    if os.getuid():
        raise RuntimeError("real nodes need root: they are made of namespaces, mounts and cgroups")
    need(*_PACKAGES, *(("dnsmasq-base",) if names else ()))
    programs = assets()
    sweep()
    prefix = f"{_PREFIX}{os.getpid()}-"
    with _ended_by_signals(), tempfile.TemporaryDirectory(prefix=prefix) as folder, _own_network():
        made = Rig(Path(folder), programs, nodes, gpus, tuple(images))
        try:
            made.up()
            with dns(made.plane, Path(folder), _PLANE) if names else nullcontext():
                yield made
        finally:
            made.down()


class Rig:
    """The control plane ``plane``, the ``nodes`` by name, and ``shared``, a hostPath that is the same on every node."""

    def __init__(self, folder: Path, programs: Path, nodes: int, gpus: int, images: tuple[Path, ...]) -> None:
        if folder.parts[1] in ("var", "run") or _ROOT.parts[1] in ("var", "run"):
            raise RuntimeError("the nodes have their own /var and /run: use another TMPDIR, check out elsewhere")
        self.group = folder.name
        names = [f"n{i}" for i in range(1, nodes + 1)]
        self.plane = ControlPlane(folder / "plane", programs, _PLANE, names)
        self.shared = folder / "shared"
        self.shared.mkdir()
        self.shared.chmod(0o777)
        self.nodes = {name: Node(self, name, i, folder, gpus) for i, name in enumerate(names, start=1)}
        for node in self.nodes.values():
            node.configure(programs, images)

    def up(self) -> None:
        """Returns when every node is Ready and offers its GPUs."""
        _ip(["link set lo up", "link add br0 type bridge", f"addr add {_PLANE}/24 dev br0", "link set br0 up"])
        _make_groups(self.group)
        _weigh(self.group)
        for node in self.nodes.values():
            node.power_on()  # the images are imported while the control plane starts
        self.plane.up(nodes=0)
        for node in self.nodes.values():
            node.admit()
        self.plane.wait("images imported", lambda: all(node.imported for node in self.nodes.values()), 300)
        self.plane.wait("nodes Ready with GPUs", lambda: all(node.ready() for node in self.nodes.values()), 300)

    def down(self) -> None:
        for node in self.nodes.values():
            node.power_off()
        self.plane.down()
        _remove_groups(self.group)


class Node:
    """One node: ``signal`` acts on one of its programs, ``power_off`` ends all at once."""

    def __init__(self, rig: Rig, name: str, number: int, folder: Path, gpus: int) -> None:
        self._rig, self.name, self._number, self._gpus = rig, name, number, gpus
        self.address, self.folder = f"10.255.0.{10 + number}", folder / name
        self._process: subprocess.Popen[bytes] | None = None
        self._init = self._boots = 0

    @property
    def pod_resources(self) -> Path:
        """The kubelet's PodResources socket, as this machine sees it."""
        return self.folder / "var/lib/kubelet/pod-resources/kubelet.sock"

    @property
    def imported(self) -> bool:
        return (self.folder / "imported").exists()

    def ready(self) -> bool:
        node = self._rig.plane.must("GET", f"/api/v1/nodes/{self.name}")
        gpus = node["status"].get("allocatable", {}).get("nvidia.com/gpu", "0")
        return self._rig.plane.ready(self.name) and gpus == str(self._gpus)

    def enter(self, *command: str) -> list[str]:
        """The command line that runs a command in this node."""
        return ["nsenter", f"--target={self._init}", "--mount", "--pid", "--uts", "--net", *command]

    def run(self, *command: str) -> str:
        return subprocess.run(self.enter(*command), check=True, capture_output=True, text=True).stdout

    def signal(self, program: str, name: str) -> None:
        """STOP hangs containerd, kubelet, kube-proxy or gpu-plugin, CONT lets it go on, KILL starts it anew."""
        self.run("sh", "-c", f"kill -{name} $(cat /run/{program}.pid)")

    def sicken(self, lines: str) -> None:
        """What the device plugin says of the GPUs from now on: lines as ``2`` or ``GONE 2``; none: all are healthy."""
        (self.folder / "run/gpu-unhealthy").write_text(lines)

    def power_on(self) -> None:
        """Boot; after a power cut as well."""
        shutil.rmtree(self.folder / "run", ignore_errors=True)
        (self.folder / "run").mkdir()
        (self.folder / "init.pid").unlink(missing_ok=True)
        _make_groups(f"{self._rig.group}/{self.name}")
        with (self.folder / "init.log").open("ab") as out:
            # If this process dies, so does unshare, and with its child every process of the node.
            self._process = subprocess.Popen(
                [
                    "setpriv",
                    "--pdeathsig",
                    "KILL",
                    "unshare",
                    "--net",
                    "--mount",
                    "--pid",
                    "--uts",
                    "--fork",
                    "--kill-child",
                    str(Path(__file__).parent / "node-init.sh"),
                    str(self.folder),
                ],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        pid = self.folder / "init.pid"
        wait(f"{self.name} boots", lambda: pid.exists() and pid.read_text().endswith("\n"))
        self._init = int(pid.read_text())
        self._connect()

    def power_off(self) -> None:
        """Every process of the node dies at once."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        self._process = None
        # The next kubelet would spend 3 s on each dead container whose cgroup it still finds.
        _remove_groups(f"{self._rig.group}/{self.name}")

    def admit(self) -> None:
        """Credentials: the node's programs wait for them."""
        source = self._rig.plane.directory
        shutil.copy(source / "kube-proxy.kubeconfig", self.folder / "conf/kube-proxy.kubeconfig")
        (self.folder / "conf/kubelet.kubeconfig").symlink_to(source / f"{self.name}.kubeconfig")

    def configure(self, programs: Path, images: tuple[Path, ...]) -> None:
        conf = self.folder / "conf"
        (conf / "cni").mkdir(parents=True)
        settings = {
            "NAME": self.name,
            "ADDRESS": self.address,
            "BIN": programs,
            "PYTHON": sys.executable,
            "ROOT": _ROOT,
            "GPUS": self._gpus,
            "IMAGES": " ".join(map(str, images)),
            "LABELS": "nvidia.com/gpu.present=true",
        }
        (conf / "env").write_text("".join(f"{name}='{value}'\n" for name, value in settings.items()))
        (conf / "containerd.toml").write_text(f"""version = 2
[plugins."io.containerd.internal.v1.opt"]
  path = "/var/lib/containerd/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{conf}/cni"
""")
        ranges = [[{"subnet": f"10.244.{self._number}.0/24"}]]
        addresses = {"type": "host-local", "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}]}
        _write(
            conf / "cni/10-rig.conflist",
            cniVersion="0.4.0",
            name="rig",
            plugins=[{"type": "ptp", "ipMasq": False, "ipam": addresses}],
        )
        _write(
            conf / "kubelet.yaml",
            apiVersion="kubelet.config.k8s.io/v1beta1",
            kind="KubeletConfiguration",
            address=self.address,
            containerRuntimeEndpoint="unix:///run/containerd/containerd.sock",
            cgroupDriver="cgroupfs",
            cgroupRoot=f"/{self._rig.group}/{self.name}",
            failCgroupV1=False,
            failSwapOn=False,
            clusterDNS=[_PLANE],
            clusterDomain="cluster.local",
            oomScoreAdj=0,
            makeIPTablesUtilChains=False,
            resolvConf="",
            volumePluginDir="/var/lib/kubelet/volumeplugins",
            evictionHard={"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            nodeLeaseDurationSeconds=_LEASE_S,
            nodeStatusUpdateFrequency="2s",
            syncFrequency="10s",
            # Only the control plane's network reaches it.
            authentication={"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            authorization={"mode": "AlwaysAllow"},
        )
        _write(
            conf / "kube-proxy.yaml",
            apiVersion="kubeproxy.config.k8s.io/v1alpha1",
            kind="KubeProxyConfiguration",
            mode="nftables",
            hostnameOverride=self.name,
            clusterCIDR="10.244.0.0/16",
            conntrack={"maxPerCore": 0, "min": 0},
            clientConnection={"kubeconfig": f"{conf}/kube-proxy.kubeconfig"},
        )

    def _connect(self) -> None:
        """A new cable into the bridge; a dead node's goes with its network namespace, sooner or later."""
        self._boots += 1
        cable = f"{self.name}-{self._boots}"
        _ip([f"link add {cable} type veth peer name eth0 netns {self._init}", f"link set {cable} master br0 up"])
        _ip([f"route replace 10.244.{self._number}.0/24 via {self.address}"])
        others = [node for node in self._rig.nodes.values() if node is not self]
        _ip(
            [
                "link set lo up",
                f"addr add {self.address}/24 dev eth0",
                "link set eth0 up",
                f"route add default via {_PLANE}",
                *(f"route add 10.244.{node._number}.0/24 via {node.address}" for node in others),
            ],
            self.enter(),
        )
        self.run("sysctl", "-qw", "net.ipv4.ip_forward=1")


def _ip(lines: list[str], where: Iterable[str] = ()) -> None:
    subprocess.run([*where, "ip", "-batch", "-"], input="\n".join(lines), check=True, text=True, capture_output=True)


def _write(path: Path, **content: Any) -> None:
    path.write_text(json.dumps(content))


def wait(what: str, seen: Callable[[], object], timeout_s: float = 60) -> None:
    end = time.monotonic() + timeout_s
    while not seen():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {timeout_s:.0f} s")
        time.sleep(0.05)


@contextmanager
def _own_network() -> Iterator[None]:
    """A network namespace for this thread and what it starts; it vanishes with the last of them."""
    libc = ctypes.CDLL(None, use_errno=True)

    def must(code: int) -> None:
        if code:
            raise OSError(ctypes.get_errno(), "changing the network namespace")

    with open("/proc/thread-self/ns/net") as before:
        must(libc.unshare(_NEW_NETWORK))
        try:
            yield
        finally:
            must(libc.setns(before.fileno(), _NEW_NETWORK))


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM ends the program as Ctrl-C does, so that the nodes are taken down."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def hierarchies() -> list[Path]:
    """The cgroup v1 hierarchies and the v2 one beside them."""
    lines = Path("/proc/mounts").read_text().splitlines()
    return [Path(where) for _, where, kind, *_ in map(str.split, lines) if kind in ("cgroup", "cgroup2")]


def _make_groups(name: str) -> None:
    for hierarchy in hierarchies():
        folder = hierarchy
        for part in Path(name).parts:
            # In version 2 a group has what the one above hands on; beside version 1 there is nothing to hand on.
            if (offered := folder / "cgroup.controllers").exists():
                wanted = " ".join(f"+{one}" for one in offered.read_text().split())
                (folder / "cgroup.subtree_control").write_text(wanted)
            folder = folder / part
            folder.mkdir(exist_ok=True)
            for file in ("cpuset.cpus", "cpuset.mems"):  # in version 1 a new one is empty, and then unusable
                if (folder / file).exists() and (folder.parent / file).exists():
                    (folder / file).write_text((folder.parent / file).read_text())


def _weigh(name: str) -> None:
    """Else what runs in all pods together counts as one process, and one without a niceness, beside this one's."""
    processes = 1.25 ** -os.nice(0) * (os.cpu_count() or 1)
    for file, one, most in ("cpu.shares", 1024, 1 << 18), ("cpu.weight", 100, 10_000):
        for weight in (hierarchy / name / file for hierarchy in hierarchies()):
            if weight.exists():
                weight.write_text(str(min(most, int(one * processes))))


def _remove_groups(name: str) -> None:
    for hierarchy in hierarchies():
        for folder, _, _ in os.walk(hierarchy / name, topdown=False):
            wait(f"{folder} to be empty", partial(_removed, folder))


def _removed(folder: str) -> bool:
    try:
        os.rmdir(folder)
    except FileNotFoundError:
        pass
    except OSError:
        return False
    return True


def sweep() -> None:
    """Remove what rigs leave whose process was killed, cgroups and files; all else ends with the process."""
    for folder in [folder for hierarchy in hierarchies() for folder in hierarchy.glob(f"{_PREFIX}*")]:
        if _is_orphan(folder):
            _remove_groups(folder.name)
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        if _is_orphan(folder):
            shutil.rmtree(folder)


def _is_orphan(folder: Path) -> bool:
    return not Path("/proc", folder.name.removeprefix(_PREFIX).partition("-")[0]).exists()
