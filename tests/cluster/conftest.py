"""Fixtures: one control plane for the run, nodes and a namespace of its own for each test, an agent process."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.config.settings import Budget
from tests.cluster.build import assets
from tests.cluster.control_plane import ControlPlane
from tests.running import Running

_NUMBERS = itertools.count(1)
OVERLAYS = Path(__file__).parents[2] / "daemonset" / "overlays"


def composed(folder: Path, *components: str) -> Path:
    """An overlay of the base and these components, in this order."""
    made = {
        "resources": [os.path.relpath(OVERLAYS.parent / "base", folder)],
        "components": [os.path.relpath(OVERLAYS.parent / "components" / one, folder) for one in components],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(made))
    return folder


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """The control plane; building it the first time takes minutes and is said."""
    made = ControlPlane(tmp_path_factory.mktemp("plane"), assets())
    made.up(nodes=0)
    made.install(OVERLAYS / "repair")
    yield made
    made.down()


class Site:
    """Two nodes, a namespace and a pool that belong to one test alone."""

    def __init__(self, plane: ControlPlane) -> None:
        self.plane, self.name = plane, f"t{next(_NUMBERS)}"
        self.pool = Budget(pool_selector=f"site={self.name}").pool  # as its permits are named
        self.nodes = (f"{self.name}-a", f"{self.name}-b")
        for node in self.nodes:
            plane.add_node(node, labels={"site": self.name})
        # The taint not-ready goes a moment after the condition, and a list that is written without it would be refused.
        plane.wait("nodes Ready", lambda: all(plane.ready(n) and not self.taints(i) for i, n in enumerate(self.nodes)))
        plane.add_namespace(self.name)

    def remove(self) -> None:
        for node in self.nodes:
            self.plane.request("DELETE", f"/api/v1/nodes/{node}")

    def node(self, index: int = 0) -> dict[str, Any]:
        return dict(self.plane.must("GET", f"/api/v1/nodes/{self.nodes[index]}"))

    def taints(self, index: int = 0) -> list[str]:
        return [t["key"] for t in self.node(index)["spec"].get("taints") or ()]

    def condition(self, kind: str) -> dict[str, Any]:
        return next((c for c in self.node()["status"]["conditions"] if c["type"] == kind), {"status": "absent"})

    def deploy(self, name: str, replicas: int, gpus: int = 1, pin: str | None = None) -> None:
        """A Deployment on this site's nodes; ``pin`` names the node that its pods start on."""
        with self._pinned(pin):
            template = {"metadata": {"labels": {"app": name}}, "spec": self._pod(gpus)}
            spec = {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": template}
            path = f"/apis/apps/v1/namespaces/{self.name}/deployments"
            self.plane.must("POST", path, {"metadata": {"name": name}, "spec": spec})
            self.plane.wait("pods run", lambda: len(self.running(name)) == replicas)

    def start_job(self, name: str, pin: str) -> None:
        """A Job that no failure of its own is forgiven, and every disruption is."""
        disrupted = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
        works = {"labels": {"app": name}, "annotations": {"gpu-health-agent.test/works": ""}}
        template = {"metadata": works, "spec": {**self._pod(), "restartPolicy": "Never"}}
        spec = {"backoffLimit": 0, "podFailurePolicy": {"rules": [disrupted]}, "template": template}
        with self._pinned(pin):
            self.plane.must(
                "POST", f"/apis/batch/v1/namespaces/{self.name}/jobs", {"metadata": {"name": name}, "spec": spec}
            )
            self.plane.wait("its pod runs", lambda: self.running(name) == [pin])

    def job(self, name: str) -> dict[str, Any]:
        """A Job's status."""
        return dict(self.plane.must("GET", f"/apis/batch/v1/namespaces/{self.name}/jobs/{name}").get("status", {}))

    def _pod(self, gpus: int = 1) -> dict[str, Any]:
        limits = {"resources": {"limits": {"nvidia.com/gpu": str(gpus)}}} if gpus else {}
        return {
            "nodeSelector": {"site": self.name},
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "main", "image": "none", **limits}],
        }

    @contextmanager
    def _pinned(self, pin: str | None) -> Iterator[None]:
        """Within it pods start on this node alone."""
        for node in self.nodes if pin else ():
            self._cordon(node, node != pin)
        yield
        for node in self.nodes if pin else ():
            self._cordon(node, False)

    def _cordon(self, node: str, cordoned: bool) -> None:
        body = {"spec": {"unschedulable": cordoned or None}}
        self.plane.must("PATCH", f"/api/v1/nodes/{node}", body, "application/merge-patch+json")

    def budget(self, name: str, min_available: int) -> None:
        """A PodDisruptionBudget over a Deployment's pods; returns once the controller has counted them."""
        path = f"/apis/policy/v1/namespaces/{self.name}/poddisruptionbudgets"
        spec = {"minAvailable": min_available, "selector": {"matchLabels": {"app": name}}}
        self.plane.must("POST", path, {"metadata": {"name": name}, "spec": spec})
        self.plane.wait(
            "budget counted",
            lambda: (
                self.plane.must("GET", f"{path}/{name}").get("status", {}).get("currentHealthy", 0) >= min_available
            ),
        )

    def running(self, app: str) -> list[str]:
        """The nodes of the Deployment's running pods."""
        path = f"/api/v1/namespaces/{self.name}/pods?labelSelector=app%3D{app}"
        return [
            p["spec"]["nodeName"]
            for p in self.plane.must("GET", path)["items"]
            if p["status"].get("phase") == "Running" and not p["metadata"].get("deletionTimestamp")
        ]


@pytest.fixture
def site(plane: ControlPlane) -> Iterator[Site]:
    made = Site(plane)
    yield made
    made.remove()


class AgentProcess:
    """``gpu-health-agent run`` as an operator starts it."""

    def __init__(
        self, site: Site, folder: Path, kubeconfig: Path, simulate: str | None, mode: str, settings: dict[str, Any]
    ) -> None:
        self.site, self.folder, self.kubeconfig = site, folder, kubeconfig
        self.kernel_log = folder / "kmsg.log"
        self.kernel_log.touch()
        self._sequence = itertools.count(100)
        self.simulation = folder / "simulation"
        config: dict[str, Any] = {
            "mode": mode,
            "poll_s": 0.5,
            "sources": {"nvml": {"enabled": simulate is not None}, "kmsg": {"path": str(self.kernel_log)}},
            "budget": {"pool_selector": f"site={site.name}"},
            "drain": {"gather_s": 0.5},
            "policy": {"soak_s": 1, "flag_confirm_s": 0.3},
            "http": {"address": "127.0.0.1", "port": 0},
        }
        for section, values in settings.items():
            config[section] = {**config.get(section, {}), **values} if isinstance(values, dict) else values
        self.config = folder / "config.yaml"
        self.config.write_text(yaml.safe_dump(config))
        self._simulate = ["--simulate", simulate] if simulate else []
        self.log = folder / "agent.log"
        self.module = "agent"  # of which the next life is
        self._life: Running | None = None
        self._pod_uid = str(uuid.uuid4())

    def start(self, *extra: str) -> None:
        options = ("--simulation-dir", str(self.simulation), *self._simulate, *extra)
        own = {"POD_UID": self._pod_uid}  # a container that begins anew is in the same pod
        node = self.site.nodes[0]
        self._life = Running(self.log, self.config, node, self.kubeconfig, *options, module=self.module, **own)
        self.site.plane.wait("the agent listens", lambda: self._life and self._life.port)

    def kill(self) -> None:
        """As the kernel's out-of-memory killer would."""
        assert self._life
        self._life.end(signal.SIGKILL)

    def stop(self) -> None:
        if self._life:
            self._life.end()

    def kernel(self, text: str) -> None:
        """The kernel says something."""
        with self.kernel_log.open("ab") as log:
            log.write(f"3,{next(self._sequence)},{int(time.monotonic() * 1e6)},-;{text}\n".encode())

    def get(self, path: str) -> str:
        assert self._life
        return self._life.get(path)

    def state(self) -> dict[str, Any]:
        try:
            return dict(json.loads(self.get("/state")))
        except (urllib.error.URLError, OSError):
            return {"status": "no answer", "waits": [], "faults": []}

    def wait_for_simulation(self) -> None:
        self.site.plane.wait("the GPUs are read", lambda: len(self.state().get("gpus", ())) == 8)

    def inject(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "agent", "inject", "--simulation-dir", str(self.simulation), *arguments]
        subprocess.run(command, check=True, capture_output=True)


StartAgent = Callable[..., AgentProcess]


@pytest.fixture
def agent(site: Site, tmp_path: Path) -> Iterator[StartAgent]:
    """Starts the agent on the site's first node; shows its log when the test fails."""
    started: list[AgentProcess] = []

    def start(
        simulate: str | None = None,
        mode: str = "evict",
        kubeconfig: Path | None = None,
        extra: tuple[str, ...] = (),
        **settings: Any,
    ) -> AgentProcess:
        # Unless told otherwise the token of its own pod: what RBAC and the policies forget or refuse fails here.
        credentials = kubeconfig or site.plane.agent_kubeconfig(site.nodes[0])
        made = AgentProcess(site, tmp_path, credentials, simulate, mode, settings)
        started.append(made)
        made.start(*extra)
        return made

    yield start
    for one in started:
        one.stop()
        print(one.log.read_text())
