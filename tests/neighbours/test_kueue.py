"""Kueue's own controller beside the agent: what becomes of its jobs when a node is withdrawn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from agent.model.names import HARD_TAINT
from tests.cluster.conftest import Site, StartAgent
from tests.cluster.control_plane import ControlPlane
from tests.neighbours.beside import Place, beside
from tests.neighbours.programs import KUEUE

API = "/apis/kueue.x-k8s.io/v1beta2"
HOST = "kubernetes.io/hostname"


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with beside(KUEUE, "evict", tmp_path_factory.mktemp("plane"), _arguments) as made:
        yield made


def _arguments(place: Place) -> tuple[str, ...]:
    config = {
        "apiVersion": "config.kueue.x-k8s.io/v1beta2",
        "kind": "Configuration",
        "health": {"healthProbeBindAddress": f"127.0.0.1:{place.health}"},
        "metrics": {"bindAddress": "0"},
        "webhook": {"host": "127.0.0.1", "port": place.webhooks, "certDir": str(place.certificate)},
        "leaderElection": {"leaderElect": False},
        "integrations": {"frameworks": ["batch/job"]},
        "featureGates": {"VisibilityOnDemand": False},  # a server on all addresses that nobody asks here
    }
    (place.folder / "kueue.yaml").write_text(yaml.safe_dump(config))
    return ("--config", str(place.folder / "kueue.yaml"))


class Queue:
    """A queue for the GPUs of a site's nodes, which Kueue chooses by their topology."""

    def __init__(self, site: Site) -> None:
        self.site, name = site, site.name
        gpus = {"name": "nvidia.com/gpu", "nominalQuota": "16"}
        groups = [{"coveredResources": [gpus["name"]], "flavors": [{"name": name, "resources": [gpus]}]}]
        self._make("topologies", "Topology", {"levels": [{"nodeLabel": HOST}]})
        self._make("resourceflavors", "ResourceFlavor", {"nodeLabels": {"site": name}, "topologyName": name})
        self._make("clusterqueues", "ClusterQueue", {"namespaceSelector": {}, "resourceGroups": groups})
        self._make(f"namespaces/{name}/localqueues", "LocalQueue", {"clusterQueue": name})

    def start(self, name: str, pin: str | None = None) -> None:
        """A Job of one pod, on the node that Kueue chooses, or on this one."""
        works = {"app": name}, {"gpu-health-agent.test/works": "", "kueue.x-k8s.io/podset-required-topology": HOST}
        template = {
            "metadata": dict(zip(("labels", "annotations"), works, strict=True)),
            "spec": {**self.site._pod(), "restartPolicy": "Never"},
        }
        job = {
            "metadata": {"name": name, "labels": {"kueue.x-k8s.io/queue-name": self.site.name}},
            "spec": {"suspend": True, "template": template},
        }
        with self.site._pinned(pin):
            self.site.plane.must("POST", f"/apis/batch/v1/namespaces/{self.site.name}/jobs", job)
            self.site.plane.wait("it runs", lambda: len(self.site.running(name)) == 1)

    def workload(self) -> dict[str, Any]:
        """The status of the only one."""
        path = f"{API}/namespaces/{self.site.name}/workloads"
        (one,) = self.site.plane.must("GET", path)["items"]
        return dict(one["status"])

    def _make(self, kind: str, name: str, spec: dict[str, Any]) -> None:
        made = {
            "apiVersion": "kueue.x-k8s.io/v1beta2",
            "kind": name,
            "metadata": {"name": self.site.name},
            "spec": spec,
        }
        self.site.plane.must("POST", f"{API}/{kind}", made)


def test_a_job_of_a_withdrawn_node_gets_another_node_and_keeps_its_place_in_the_queue(
    site: Site, agent: StartAgent
) -> None:
    queue = Queue(site)
    running = agent(simulate="idle")
    queue.start("train", pin=site.nodes[0])
    assert site.running("train") == [site.nodes[0]]
    site.plane.wait("healthy", lambda: running.state()["status"] == "healthy")
    running.inject("--gpu", "3", "--xid", "95")
    site.plane.wait("withdrawn", lambda: HARD_TAINT in site.taints())
    site.plane.wait("it runs elsewhere", lambda: site.running("train") == [site.nodes[1]])
    print(queue.workload())
    assert not [one for one in queue.workload()["conditions"] if one["type"] == "Evicted"], "it was never queued again"
