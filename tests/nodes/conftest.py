"""Fixtures: two real nodes for the run with the agent's manifests applied, and a namespace for each test."""

from __future__ import annotations

import itertools
import json
import os
import re
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.model.names import OUT_LABEL
from agent.simulation.gpu import h100_8
from tests.image.build import IMAGE, images
from tests.nodes import simulated
from tests.nodes.rig import Rig, rig

NAMESPACE = "gpu-health-agent"
PODS_API = "var/lib/kubelet/pods-api/pods-api.sock"
UUIDS = [gpu.uuid for gpu in h100_8()]
_MANIFESTS = Path(__file__).parents[2] / "daemonset"
_NUMBERS = itertools.count(1)
_PYTHON = "/opt/gpu-health-agent/bin/python"
# Work that is saved when it is asked to end, which takes it three seconds.
_WORK = """
import os, signal, sys, time
def save(*_):
    print("asked to end", flush=True)
    time.sleep(3)
    print("saved", flush=True)
    with open(os.environ["SAVED"], "w") as file:
        file.write("saved")
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
print("works", flush=True)
while True:
    signal.pause()
"""


class Site:
    """The rig with the agent on it, as an operator has it, and a namespace that belongs to one test alone."""

    def __init__(self, made: Rig) -> None:
        self.rig, self.plane, self.name = made, made.plane, f"t{next(_NUMBERS)}"
        self.plane.add_namespace(self.name)

    def deploy(self, name: str, node: str, replicas: int = 1, gpus: int = 1) -> None:
        """A Deployment whose first pods start on one node, and whose next ones may go anywhere."""
        saved = self.saved(name)
        saved.parent.mkdir(exist_ok=True)
        saved.parent.chmod(0o777)
        container = _container([_PYTHON, "-c", _WORK], gpus) | {
            "env": [{"name": "SAVED", "value": str(saved)}],
            "volumeMounts": [{"name": "shared", "mountPath": str(saved.parent)}],
        }
        self._start(
            node,
            name,
            replicas,
            f"/apis/apps/v1/namespaces/{self.name}/deployments",
            {
                "metadata": {"name": name},
                "spec": {
                    "replicas": replicas,
                    "selector": {"matchLabels": {"app": name}},
                    "template": {
                        "metadata": {"labels": {"app": name}},
                        "spec": {
                            "terminationGracePeriodSeconds": 30,
                            "containers": [container],
                            "volumes": [{"name": "shared", "hostPath": {"path": str(saved.parent)}}],
                        },
                    },
                },
            },
        )

    def start_job(self, name: str, node: str) -> None:
        """A Job on one GPU that no failure of its own is forgiven, and every disruption is; SIGTERM is a failure."""
        disrupted = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
        work = _container(["sh", "-c", "trap 'exit 1' TERM; sleep 3600 & wait"], 1)
        self._start(
            node,
            name,
            1,
            f"/apis/batch/v1/namespaces/{self.name}/jobs",
            {
                "metadata": {"name": name},
                "spec": {
                    "backoffLimit": 0,
                    "podFailurePolicy": {"rules": [disrupted]},
                    "template": {
                        "metadata": {"labels": {"app": name}},
                        "spec": {"restartPolicy": "Never", "containers": [work]},
                    },
                },
            },
        )

    def _start(self, node: str, name: str, pods: int, path: str, body: Any) -> None:
        others = [other for other in self.rig.nodes if other != node]
        for other in others:
            self._cordon(other, True)
        self.plane.must("POST", path, body)
        self.plane.wait(f"{name} runs", lambda: len(self.running(name)) == pods, 180)
        for other in others:
            self._cordon(other, False)
        self.plane.wait("the others count as in service", lambda: not any(map(self._out, others)), 90)

    def _out(self, node: str) -> bool:
        """Whether its agent says that it is out of service: one that looked while it was cordoned does, for a minute.

        No cured node is held meanwhile.
        """
        labels = self.plane.must("GET", f"/api/v1/nodes/{node}")["metadata"]["labels"]
        return bool(labels.get(OUT_LABEL) == "true")

    def saved(self, name: str) -> Path:
        """Where the Deployment's work is saved: the same folder on every node."""
        return self.rig.shared / self.name / name

    def running(self, app: str) -> list[dict[str, Any]]:
        path = f"/api/v1/namespaces/{self.name}/pods?labelSelector=app%3D{app}"
        pods = self.plane.must("GET", path)["items"]
        return [p for p in pods if p["status"]["phase"] == "Running" and not p["metadata"].get("deletionTimestamp")]

    def where(self, app: str) -> list[str]:
        """The nodes of the Deployment's running pods."""
        return [pod["spec"]["nodeName"] for pod in self.running(app)]

    def pod(self, app: str) -> dict[str, Any]:
        (one,) = self.running(app)
        return one

    def pid(self, pod: dict[str, Any], word: str) -> int:
        """Of the pod's program whose command line has this word, as the kernel of its node numbers it."""
        find = f"grep -l pod{pod['metadata']['uid']} /proc/[0-9]*/cgroup"
        node = self.rig.nodes[pod["spec"]["nodeName"]]
        for path in node.run("sh", "-c", find).split():
            pid = path.split("/")[2]
            if word in node.run("cat", f"/proc/{pid}/cmdline").split("\0"):
                return int(pid)
        raise LookupError(f"no program of {pod['metadata']['name']} with {word!r}")

    def agent(self, node: str) -> dict[str, Any]:
        """The agent's pod on a node."""
        return agent_on(self.rig, node)

    def state(self, node: str) -> dict[str, Any]:
        """What the agent there says at /state, asked at its pod's own address."""
        return dict(json.loads(self.get(node, "/state")))

    def get(self, node: str, path: str) -> str:
        address = self.agent(node)["status"]["podIP"]
        with urllib.request.urlopen(f"http://{address}:9836{path}", timeout=5) as answer:
            return str(answer.read().decode())

    def inject(self, node: str, *arguments: str) -> None:
        self.shell(node, "sources", "gpu-health-agent", "inject", *arguments)

    def shell(self, node: str, container: str, *command: str) -> str:
        """What a command says in a container of the agent's pod."""
        name = self.agent(node)["metadata"]["name"]
        return self.plane.kubectl("exec", f"--namespace={NAMESPACE}", name, f"--container={container}", "--", *command)

    def jobs(self, what: str) -> list[dict[str, Any]]:
        """The agents' repairs (``reset-gpu``), or what takes evidence before them (``collect``)."""
        found = self.plane.must("GET", f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs")["items"]
        return [job for job in found if job["metadata"]["name"].startswith(f"gpu-health-{what}-")]

    def taints(self, node: str) -> list[str]:
        spec = self.plane.must("GET", f"/api/v1/nodes/{node}")["spec"]
        return [taint["key"] for taint in spec.get("taints") or () if taint["key"].startswith("gpu-health-agent/")]

    @contextmanager
    def paused(self) -> Iterator[None]:
        """No agent acts meanwhile."""
        path, name = f"/api/v1/namespaces/{NAMESPACE}/configmaps", f"{NAMESPACE}-pause"
        self.plane.must("POST", path, {"metadata": {"name": name}, "data": {"paused": "true"}})
        try:
            yield
        finally:
            self.plane.must("DELETE", f"{path}/{name}")

    def _cordon(self, node: str, cordoned: bool) -> None:
        body = {"spec": {"unschedulable": cordoned or None}}
        self.plane.must("PATCH", f"/api/v1/nodes/{node}", body, "application/merge-patch+json")


def _container(command: list[str], gpus: int) -> dict[str, Any]:
    limits = {"resources": {"limits": {"nvidia.com/gpu": str(gpus)}}} if gpus else {}
    return {"name": "main", "image": IMAGE, "imagePullPolicy": "Never", "command": command, **limits}


def agent_on(made: Rig | simulated.Site, node: str) -> dict[str, Any]:
    agents = f"app.kubernetes.io/name%3D{NAMESPACE}"
    path = f"/api/v1/namespaces/{NAMESPACE}/pods?fieldSelector=spec.nodeName%3D{node}&labelSelector={agents}"
    (pod,) = made.plane.must("GET", path)["items"] or [{}]
    return dict(pod)


# A shipped template, but for what it runs and on which machine.
_TEMPLATE = """
apiVersion: batch/v1
kind: CronJob
metadata: {name: gpu-NAME, namespace: gpu-health-agent}
spec:
  jobTemplate:
    spec:
      template:
        spec:
          containers:
            - name: NAME
              command:
                - sh
                - -c
                - COMMAND
              env: [{name: NODE_NAME, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]
              volumeMounts: [{name: simulation, mountPath: /tmp, subPathExpr: $(NODE_NAME)}]
          volumes: [{name: simulation, hostPath: {path: SIMULATION}}]
"""
_COMMANDS = {
    # What nvidia-smi would do to GPUs is done to simulated ones.
    "reset": 'for gpu in $(echo "$GPUS" | tr , " "); do gpu-health-agent inject --gpu "$gpu" --clear || exit; done',
    # Without the driver's own script it fails, and hangs where the machine has a file of that name.
    "collect": "test ! -e /tmp/hangs || sleep 3600; exit 1",
}
WANTS_NO_HOLD = "gpu-health-agent/dismiss=recurrence@node"


def _template(name: str, simulation: Path) -> str:
    words = {"NAME": name, "COMMAND": _COMMANDS[name], "SIMULATION": str(simulation)}
    return re.sub(r"\b(NAME|COMMAND|SIMULATION)\b", lambda found: words[found[0]], _TEMPLATE)


def install(
    made: Rig | simulated.Site, folder: Path, *components: str, kernel_log: bool = True, pods_api: str | None = None
) -> None:
    """The manifests as they are shipped, but for the image, simulated GPUs and shorter times."""
    repair = "repair" in components
    config = yaml.safe_load((_MANIFESTS / "base" / "config.yaml").read_text())
    gpus = {"scenario": "idle", "kernel_log": kernel_log}
    sources = {"simulated": gpus, "pods": {"pods_api": pods_api}}
    policy = {"soak_s": 2, "relapses": 20}  # one GPU breaks in many tests
    config |= {"mode": "evict", "poll_s": 1, "sources": sources, "policy": policy}
    config["drain"]["gather_s"] = 1
    if repair:
        config["repair"] = {"reset_gpu": "gpu-reset", "collect": "gpu-collect", "collect_s": 20}
        config["budget"]["max_withdrawn"] = 2  # of two nodes: a cured one is held, unless a person wants none of it
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    simulation = made.shared / "simulation"  # a folder in it is a machine: it outlives the sources, as GPUs do
    simulation.mkdir()
    writable = [
        {
            "op": "add",
            "path": "/spec/template/spec/volumes/-",
            "value": {"name": "simulation", "hostPath": {"path": str(simulation)}},
        },
        {"op": "test", "path": "/spec/template/spec/containers/1/name", "value": "sources"},
        {
            "op": "add",
            "path": "/spec/template/spec/containers/1/env/-",
            "value": {"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        },
        {
            "op": "add",
            "path": "/spec/template/spec/containers/1/volumeMounts/-",
            "value": {"name": "simulation", "mountPath": "/tmp", "subPathExpr": "$(NODE_NAME)"},
        },
    ]
    templates = [{"patch": _template(name, simulation)} for name in _COMMANDS] if repair else []
    name, _, tag = IMAGE.rpartition(":")
    (folder / "kustomization.yaml").write_text(
        yaml.safe_dump(
            {
                "resources": [os.path.relpath(_MANIFESTS, folder)],
                "components": [os.path.relpath(_MANIFESTS / "components" / one, folder) for one in components],
                "images": [{"name": "gpu-health-agent", "newName": name, "newTag": tag}],
                "configMapGenerator": [
                    {"name": NAMESPACE, "namespace": NAMESPACE, "behavior": "replace", "files": ["config.yaml"]}
                ],
                "patches": [{"target": {"kind": "DaemonSet"}, "patch": yaml.safe_dump(writable)}, *templates],
            }
        )
    )
    # What the NVIDIA container toolkit makes on a node with GPUs.
    made.plane.must("POST", "/apis/node.k8s.io/v1/runtimeclasses", {"metadata": {"name": "nvidia"}, "handler": "runc"})
    made.plane.kubectl("apply", "-k", str(folder))


@pytest.fixture(scope="session")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """Two real nodes with the agent on them, which reads its simulated GPUs."""
    with rig(2, images=images()) as made:
        install(made, tmp_path_factory.mktemp("manifests"), "repair", "door", "pods-api", pods_api=f"/{PODS_API}")
        try:
            made.plane.wait("the agents are ready", lambda: all(serves(made, node) for node in made.nodes), 180)
            # What is mended returns at once, but for the test that looks at a hold.
            made.plane.kubectl("annotate", "node", "--all", WANTS_NO_HOLD)
            yield made
        finally:
            print(made.plane.kubectl("get", "pods", "--all-namespaces", "--output=wide"))
            print(
                made.plane.kubectl(
                    "logs",
                    f"--namespace={NAMESPACE}",
                    "--all-containers",
                    "--prefix",
                    "--tail=-1",
                    "--ignore-errors",
                    f"--selector=app.kubernetes.io/name={NAMESPACE}",
                )
            )


def serves(made: Rig | simulated.Site, node: str) -> bool:
    """The agent there is ready, and calls its node healthy."""
    conditions = agent_on(made, node).get("status", {}).get("conditions", ())
    labels = made.plane.must("GET", f"/api/v1/nodes/{node}")["metadata"]["labels"]
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
    return ready and labels.get("gpu-health-agent/state") == "healthy"


@pytest.fixture
def site(nodes: Rig) -> Iterator[Site]:
    made = Site(nodes)
    yield made
    for node in nodes.nodes.values():
        node.sicken("")
        made.inject(node.name, "--clear")
    nodes.plane.must("DELETE", f"/api/v1/namespaces/{made.name}")
    nodes.plane.wait(
        "the test's pods are gone", lambda: not nodes.plane.must("GET", f"/api/v1/namespaces/{made.name}/pods")["items"]
    )
