"""JobSet's own controller beside the agent: a gang whose node is withdrawn begins anew once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.cluster.conftest import Site, StartAgent
from tests.cluster.control_plane import ControlPlane
from tests.neighbours.beside import Place, beside
from tests.neighbours.programs import JOBSET

RANKS = 3


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with beside(JOBSET, "evict", tmp_path_factory.mktemp("plane"), _arguments) as made:
        yield made


def _arguments(place: Place) -> tuple[str, ...]:
    config = {
        "apiVersion": "config.jobset.x-k8s.io/v1alpha1",
        "kind": "Configuration",
        "health": {"healthProbeBindAddress": f"127.0.0.1:{place.health}"},
        "metrics": {"bindAddress": "0"},
        "webhook": {"host": "127.0.0.1", "port": place.webhooks, "certDir": str(place.certificate)},
        "leaderElection": {"leaderElect": False},
        "internalCertManagement": {"enable": False},
    }
    (place.folder / "jobset.yaml").write_text(yaml.safe_dump(config))
    return ("--config", str(place.folder / "jobset.yaml"))


def start(site: Site, node: str) -> None:
    """A gang: if a rank ends, all begin anew."""
    works = {"labels": {"app": "gang"}, "annotations": {"gpu-health-agent.test/works": ""}}
    job = {"backoffLimit": 0, "template": {"metadata": works, "spec": {**site._pod(), "restartPolicy": "Never"}}}
    spec = {
        "failurePolicy": {"maxRestarts": 5},
        "replicatedJobs": [{"name": "ranks", "replicas": RANKS, "template": {"spec": job}}],
    }
    made = {"apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet", "metadata": {"name": "gang"}, "spec": spec}
    with site._pinned(node):
        site.plane.must("POST", f"/apis/jobset.x-k8s.io/v1alpha2/namespaces/{site.name}/jobsets", made)
        site.plane.wait("it runs", lambda: site.running("gang") == [node] * RANKS)


def status(site: Site) -> dict[str, Any]:
    path = f"/apis/jobset.x-k8s.io/v1alpha2/namespaces/{site.name}/jobsets/gang"
    return dict(site.plane.must("GET", path)["status"])


def test_a_gang_whose_node_is_withdrawn_for_two_faults_begins_anew_once(site: Site, agent: StartAgent) -> None:
    start(site, site.nodes[0])
    running = agent(simulate="idle", drain={"gather_s": 2})
    site.plane.wait("healthy", lambda: running.state()["status"] == "healthy")
    running.inject("--gpu", "3", "--xid", "95")
    running.inject("--gpu", "5", "--xid", "95")
    site.plane.wait("all ranks run elsewhere", lambda: site.running("gang") == [site.nodes[1]] * RANKS)
    assert len(running.state()["faults"]) >= 2
    assert status(site)["restarts"] == 1
    site.plane.wait("all are counted", lambda: status(site)["replicatedJobsStatus"][0]["ready"] == RANKS)
    assert status(site)["restarts"] == 1
