"""One control plane: certificates, processes, and plain requests to its API server."""

from __future__ import annotations

import http.client
import json
import secrets
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.build import STAGES

_ORDER = ("kwok", "kube-scheduler", "kube-controller-manager", "kube-apiserver", "etcd")
_NAMESPACE = "/api/v1/namespaces/gpu-health-agent"
_AGENT = "app.kubernetes.io%2Fname%3Dgpu-health-agent"
_WORKS = Path(__file__).parent / "working-pods.yaml"
_USERS = {
    "admin": "admin,admin,system:masters",
    "kwok": "kwok,kwok,system:masters",
    "kube-controller-manager": "system:kube-controller-manager,kcm,",
    "kube-scheduler": "system:kube-scheduler,sched,",
    "kube-proxy": "system:kube-proxy,proxy,",
}


class ControlPlane:
    """etcd, kube-apiserver, kube-controller-manager, kube-scheduler and kwok, ended with ``down``.

    With the names of real nodes, which reach it at ``address``, it has credentials for them and no kwok; without
    ``pods`` kwok plays nodes alone.
    """

    def __init__(
        self,
        directory: Path,
        assets: Path,
        address: str = "127.0.0.1",
        real_nodes: Collection[str] = (),
        pods: bool = True,
    ) -> None:
        self.directory, self._bin = directory.resolve(), assets
        self.address, self._real_nodes, self._pods = address, real_nodes, pods
        self._pki, self._log = self.directory / "pki", self.directory / "log"
        self.kubeconfig = self.directory / "admin.kubeconfig"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._token = ""
        self.port = 0

    @property
    def url(self) -> str:
        return f"https://{self.address}:{self.port}"

    def up(self, nodes: int = 3, gpus: int = 8) -> None:
        """Start everything; returns when the nodes are Ready."""
        for folder in (self.directory, self._pki, self._log):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            self._start_all()
            for i in range(nodes):
                self.add_node(f"node-{i}", gpus)
            # Without the default service account every pod is refused.
            self.wait("default service account", lambda: self._account("default"))
            self.wait("nodes Ready", lambda: all(self.ready(f"node-{i}") for i in range(nodes)))
        except BaseException:
            self.down()
            raise

    def down(self) -> None:
        for name in _ORDER:
            self.end(name)

    def end(self, name: str) -> None:
        """One of its processes."""
        process = self._processes.pop(name, None)
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGKILL if name in ("etcd", "kube-apiserver") else signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def pid(self, name: str) -> int:
        return self._processes[name].pid

    def request(
        self, method: str, path: str, body: Any = None, content_type: str = "application/json", token: str = ""
    ) -> tuple[int, Any]:
        """One request, as cluster admin unless another token is given: status and answer."""
        context = ssl.create_default_context(cafile=str(self._pki / "ca.crt"))
        connection = http.client.HTTPSConnection(self.address, self.port, timeout=30, context=context)
        try:
            headers = {"Authorization": f"Bearer {token or self._token}", "Content-Type": content_type}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            text = response.read()
            try:
                return response.status, json.loads(text)
            except ValueError:
                return response.status, text.decode()
        finally:
            connection.close()

    def must(self, method: str, path: str, body: Any = None, content_type: str = "application/json") -> Any:
        """A request that has to succeed."""
        status, answer = self.request(method, path, body, content_type)
        if not 200 <= status < 300:
            raise RuntimeError(f"{method} {path}: {status} {answer}")
        return answer

    def kubectl(self, *arguments: str, text: str | None = None) -> str:
        return subprocess.run(self.command(*arguments), input=text, check=True, capture_output=True, text=True).stdout

    def command(self, *arguments: str) -> list[str]:
        """kubectl's command line, as cluster admin."""
        return [str(self._bin / "kubectl"), f"--kubeconfig={self.kubeconfig}", *arguments]

    def add_node(
        self, name: str, gpus: int = 8, labels: dict[str, str] | None = None, runtime: str | None = None
    ) -> None:
        """A node played by kwok, whose container runtime may have a name."""
        resources = {"cpu": "64", "memory": "512Gi", "pods": "110", "nvidia.com/gpu": str(gpus)}
        own = {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "nvidia.com/gpu.present": "true"}
        self.must(
            "POST",
            "/api/v1/nodes",
            {
                "metadata": {
                    "name": name,
                    "labels": {**own, **(labels or {})},
                    "annotations": {"kwok.x-k8s.io/node": "fake"},
                },
                "status": {
                    "allocatable": resources,
                    "capacity": resources,
                    **({"nodeInfo": {"containerRuntimeVersion": runtime}} if runtime else {}),
                },
            },
        )

    def ready(self, node: str) -> bool:
        conditions = self.must("GET", f"/api/v1/nodes/{node}")["status"].get("conditions") or ()
        return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)

    def add_namespace(self, name: str) -> None:
        self.must("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
        self.wait(f"service account of {name}", lambda: self._account(name))

    def wait(self, what: str, seen: Callable[[], object], timeout_s: float = 60) -> None:
        """Until ``seen`` is true; TimeoutError, or RuntimeError with the log of a process that ended."""
        end, error = time.monotonic() + timeout_s, None
        while time.monotonic() < end:
            for name, process in self._processes.items():
                if process.poll() is not None:
                    tail = (self._log / f"{name}.log").read_text(errors="replace")[-3000:]
                    raise RuntimeError(f"{name} ended with {process.returncode}:\n{tail}")
            try:
                if seen():
                    return
            except (OSError, http.client.HTTPException, RuntimeError) as failure:
                error = failure
            time.sleep(0.05)
        raise TimeoutError(f"{what} did not happen in {timeout_s} s: {error}")

    def write_kubeconfig(self, path: Path, token: str) -> Path:
        cluster = {"server": self.url, "certificate-authority": str(self._pki / "ca.crt")}
        path.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "c",
                    "clusters": [{"name": "c", "cluster": cluster}],
                    "users": [{"name": "u", "user": {"token": token}}],
                    "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                }
            )
        )
        path.chmod(0o600)
        return path

    def toolkit(self) -> None:
        """The nodes have NVIDIA's container toolkit, as gpu-operator installs it."""
        runtime = {"metadata": {"name": "nvidia"}, "handler": "nvidia"}
        self.request("POST", "/apis/node.k8s.io/v1/runtimeclasses", runtime)

    def install(self, manifests: Path) -> None:
        """What an operator applies."""
        self.toolkit()
        self.kubectl("apply", "-k", str(manifests))

    def agent_token(self, node: str) -> str:
        """A token as the kubelet would give it to the agent's pod on this node: it names the pod and the node."""
        pods = f"{_NAMESPACE}/pods?fieldSelector=spec.nodeName%3D{node}&labelSelector={_AGENT}"
        self.wait(f"an agent's pod on {node}", lambda: self.must("GET", pods)["items"])
        pod = self.must("GET", pods)["items"][0]["metadata"]
        bound = {"kind": "Pod", "apiVersion": "v1", "name": pod["name"], "uid": pod["uid"]}
        path = f"{_NAMESPACE}/serviceaccounts/gpu-health-agent/token"
        spec = {"expirationSeconds": 3600, "boundObjectRef": bound}
        return str(self.must("POST", path, {"spec": spec})["status"]["token"])

    def agent_kubeconfig(self, node: str) -> Path:
        return self.write_kubeconfig(self.directory / f"agent-{node}.kubeconfig", self.agent_token(node))

    def account_kubeconfig(self, namespace: str, account: str) -> Path:
        """A kubeconfig with a fresh token of a ServiceAccount."""
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
        token = self.must("POST", path, {"spec": {"expirationSeconds": 3600}})["status"]["token"]
        return self.write_kubeconfig(self.directory / f"{namespace}-{account}.kubeconfig", token)

    def _account(self, namespace: str) -> bool:
        return self.request("GET", f"/api/v1/namespaces/{namespace}/serviceaccounts/default")[0] == 200

    def _start_all(self) -> None:
        etcd, peer, self.port, controllers, scheduler, kwok = _free_ports(6)
        # Nothing here must survive a power cut, so etcd need not wait for the disk.
        self._start(
            "etcd",
            f"--data-dir={self.directory}/etcd",
            f"--listen-client-urls=http://127.0.0.1:{etcd}",
            f"--advertise-client-urls=http://127.0.0.1:{etcd}",
            f"--listen-peer-urls=http://127.0.0.1:{peer}",
            f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
            f"--initial-cluster=default=http://127.0.0.1:{peer}",
            "--unsafe-no-fsync",
        )
        self._certificates()
        users = {**_USERS, **{name: f"system:node:{name},{name},system:nodes" for name in self._real_nodes}}
        tokens = {name: secrets.token_hex(16) for name in users}
        self._token = tokens["admin"]
        lines = []
        for name, user in users.items():
            who, uid, groups = user.split(",")
            lines.append(f"{tokens[name]},{who},{uid}" + (f',"{groups}"' if groups else ""))
            self.write_kubeconfig(self.directory / f"{name}.kubeconfig", tokens[name])
        (self._pki / "tokens.csv").write_text("\n".join(lines) + "\n")
        pki, real = self._pki, self._real_nodes
        self._start(
            "kube-apiserver",
            f"--etcd-servers=http://127.0.0.1:{etcd}",
            f"--bind-address={self.address}",
            f"--secure-port={self.port}",
            f"--advertise-address={self.address}",
            # A loopback address is refused in the Service "kubernetes".
            "--kubelet-preferred-address-types=InternalIP" if real else "--endpoint-reconciler-type=none",
            "--authorization-mode=Node,RBAC",
            "--allow-privileged=true",
            "--service-cluster-ip-range=10.96.0.0/16",
            f"--tls-cert-file={pki}/apiserver.crt",
            f"--tls-private-key-file={pki}/apiserver.key",
            f"--client-ca-file={pki}/ca.crt",
            f"--token-auth-file={pki}/tokens.csv",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            f"--service-account-key-file={pki}/sa.pub",
            f"--service-account-signing-key-file={pki}/sa.key",
        )
        self.wait("kube-apiserver", lambda: self.request("GET", "/readyz")[1] == "ok", 120)
        self._start(
            "kube-controller-manager",
            *self._credentials("kube-controller-manager"),
            "--bind-address=127.0.0.1",
            f"--secure-port={controllers}",
            f"--cert-dir={self.directory}/kcm",
            "--leader-elect=false",
            "--use-service-account-credentials=true",
            # Each controller fetches a token at its start: the default of 20 requests a second costs 5 s.
            "--kube-api-qps=1000",
            "--kube-api-burst=2000",
            f"--service-account-private-key-file={pki}/sa.key",
            f"--root-ca-file={pki}/ca.crt",
            f"--cluster-signing-cert-file={pki}/ca.crt",
            f"--cluster-signing-key-file={pki}/ca.key",
            # A node's Lease lasts 8 s (tests/nodes): it is seen to be dead three times sooner than by default.
            *(("--node-monitor-period=1s", "--node-monitor-grace-period=16s") if real else ()),
        )
        self._start(
            "kube-scheduler",
            *self._credentials("kube-scheduler"),
            "--bind-address=127.0.0.1",
            f"--secure-port={scheduler}",
            f"--cert-dir={self.directory}/sched",
            "--leader-elect=false",
        )
        if real:
            return
        text = _WORKS.read_text() + "---\n" + _but_for_working_pods((self._bin / STAGES).read_text())
        stages = [stage for stage in yaml.safe_load_all(text) if self._pods or _is_for_nodes(stage)]
        played = self.directory / STAGES
        played.write_text(yaml.safe_dump_all(stages))
        self._start(
            "kwok",
            f"--kubeconfig={self.directory}/kwok.kubeconfig",
            "--manage-all-nodes=false",
            "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake",
            "--node-lease-duration-seconds=40",
            f"--config={played}",
            f"--server-address=127.0.0.1:{kwok}",
        )

    def _credentials(self, name: str) -> list[str]:
        file = self.directory / f"{name}.kubeconfig"
        return [f"--{kind}kubeconfig={file}" for kind in ("", "authentication-", "authorization-")]

    def _start(self, name: str, *arguments: str) -> None:
        with (self._log / f"{name}.log").open("ab") as out:
            self._processes[name] = subprocess.Popen(
                # Whoever is killed before `down` leaves no API server behind.
                ["setpriv", "--pdeathsig", "KILL", str(self._bin / name), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _certificates(self) -> None:
        pki = self._pki
        _openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", f"{pki}/ca.key")
        _openssl(
            "req", "-x509", "-new", "-key", f"{pki}/ca.key", "-days", "30", "-subj", "/CN=ca", "-out", f"{pki}/ca.crt"
        )
        _openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", f"{pki}/apiserver.key")
        _openssl(
            "req", "-new", "-key", f"{pki}/apiserver.key", "-subj", "/CN=kube-apiserver", "-out", f"{pki}/apiserver.csr"
        )
        names = f"IP:{self.address},IP:10.96.0.1,DNS:localhost,DNS:kubernetes.default.svc"
        _openssl(
            "x509",
            "-req",
            "-in",
            f"{pki}/apiserver.csr",
            "-CA",
            f"{pki}/ca.crt",
            "-CAkey",
            f"{pki}/ca.key",
            "-set_serial",
            "1",
            "-days",
            "30",
            "-extfile",
            "/dev/stdin",
            "-out",
            f"{pki}/apiserver.crt",
            text=f"subjectAltName={names}\nextendedKeyUsage=serverAuth\n",
        )
        _openssl("genrsa", "-out", f"{pki}/sa.key", "2048")
        _openssl("rsa", "-in", f"{pki}/sa.key", "-pubout", "-out", f"{pki}/sa.pub")


def _but_for_working_pods(stages: str) -> str:
    """kwok's own stages end a Job's pod at its start, and take a pod that is deleted away without a word of its end."""
    made = list(yaml.safe_load_all(stages))
    for stage in made:
        if stage["metadata"]["name"] in ("pod-complete", "pod-delete"):
            other = {"key": '.metadata.annotations["gpu-health-agent.test/works"]', "operator": "DoesNotExist"}
            stage["spec"]["selector"]["matchExpressions"].append(other)
    return yaml.safe_dump_all(made)


def _is_for_nodes(stage: dict[str, Any]) -> bool:
    return bool(stage["spec"]["resourceRef"]["kind"] == "Node")


def _openssl(*arguments: str, text: str | None = None) -> None:
    subprocess.run(["openssl", *arguments], input=text, check=True, capture_output=True, text=True)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
