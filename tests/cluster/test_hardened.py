"""The overlay ``hardened`` on a control plane of its own: a dry run, then a delete, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.build import assets
from tests.cluster.conftest import OVERLAYS, Site, StartAgent
from tests.cluster.control_plane import ControlPlane
from tests.cluster.test_policies import REFUSED, STRATEGIC, Stolen, stolen
from tests.cluster.test_spine import UNHEALTHY

HARDENED = {"eviction": "ask_then_delete"}
__all__ = ["stolen"]  # a fixture


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    made = ControlPlane(tmp_path_factory.mktemp("hardened"), assets())
    made.up(nodes=0)
    made.install(OVERLAYS / "hardened")
    yield made
    made.down()


def test_a_fault_moves_the_pods_marks_them_as_disrupted_and_the_cured_node_returns(
    site: Site, agent: StartAgent
) -> None:
    site.deploy("train", 1, pin=site.nodes[0])
    path = f"/api/v1/namespaces/{site.name}/pods"
    (pod,) = site.plane.must("GET", path)["items"]
    kept = {"metadata": {"finalizers": ["example.com/look"]}}
    pod = site.plane.must("PATCH", f"{path}/{pod['metadata']['name']}", kept, "application/merge-patch+json")
    running = agent(simulate="idle", drain=HARDENED)
    site.plane.wait("healthy", lambda: running.state()["status"] == "healthy")
    running.inject("--gpu", "3", "--xid", "95")
    site.plane.wait("moved", lambda: site.running("train") == [site.nodes[1]])
    left = site.plane.must("GET", f"{path}/{pod['metadata']['name']}")
    (disrupted,) = (c for c in left["status"]["conditions"] if c["type"] == "DisruptionTarget")
    assert (disrupted["status"], disrupted["reason"]) == ("True", "DeletionByGpuHealthAgent")
    assert f"was asked to leave node {site.nodes[0]}" in disrupted["message"]
    gone = {"metadata": {"finalizers": None}}
    site.plane.must("PATCH", f"{path}/{pod['metadata']['name']}", gone, "application/merge-patch+json")
    running.inject("--gpu", "3", "--clear")
    site.plane.wait("returned", lambda: site.taints() == [] and running.state()["status"] == "healthy")


def test_a_job_that_forgives_disruptions_goes_on_elsewhere(site: Site, agent: StartAgent) -> None:
    site.start_job("train", pin=site.nodes[0])
    running = agent(simulate="idle", drain=HARDENED)
    site.plane.wait("healthy", lambda: running.state()["status"] == "healthy")
    running.inject("--gpu", "3", "--xid", "95")
    site.plane.wait("it runs elsewhere", lambda: site.running("train") == [site.nodes[1]])
    assert (site.job("train").get("failed", 0), site.job("train").get("conditions", [])) == (0, [])


def test_the_same_job_fails_where_its_pod_is_deleted_and_nobody_said_why(site: Site) -> None:
    site.start_job("train", pin=site.nodes[0])
    path = f"/api/v1/namespaces/{site.name}/pods"
    site.plane.must("DELETE", f"{path}?labelSelector=app%3Dtrain")
    site.plane.wait("it failed", lambda: "Failed" in {c["type"] for c in site.job("train").get("conditions", ())})
    assert site.job("train")["failed"] == 1


def test_a_pod_that_its_budget_protects_waits_here_too(site: Site, agent: StartAgent) -> None:
    site.deploy("serve", 2, pin=site.nodes[0])
    site.budget("serve", 2)
    running = agent(simulate="idle", drain=HARDENED)
    site.plane.wait("healthy", lambda: running.state()["status"] == "healthy")
    running.inject("--gpu", "3", "--xid", "95")
    site.plane.wait("taint", lambda: site.taints() == [UNHEALTHY])
    site.plane.wait("said", lambda: any("disruption budget" in why for why in running.state()["waits"]))
    pods = site.plane.must("GET", f"/api/v1/namespaces/{site.name}/pods")["items"]
    assert not [c for pod in pods for c in pod["status"]["conditions"] if c["type"] == "DisruptionTarget"]
    site.plane.must("DELETE", f"/apis/policy/v1/namespaces/{site.name}/poddisruptionbudgets/serve")
    site.plane.wait("moved", lambda: site.running("serve") == [site.nodes[1]] * 2)


def test_without_the_setting_that_belongs_to_it_the_agent_says_what_is_refused(site: Site, agent: StartAgent) -> None:
    site.deploy("train", 1, pin=site.nodes[0])
    running = agent(simulate="idle")
    site.plane.wait("healthy", lambda: running.state()["status"] == "healthy")
    running.inject("--gpu", "3", "--xid", "95")
    site.plane.wait("said", lambda: any("evict in a dry run only" in why for why in running.state()["waits"]))
    assert site.running("train") == [site.nodes[0]]


def test_no_pod_is_evicted_for_real_neither_here_nor_there(stolen: Stolen) -> None:
    for number, node in enumerate(stolen.site.nodes):
        pod = stolen.pod(node, f"work-{number}")
        assert stolen.evict(pod) in REFUSED
        assert stolen.evict(pod, dry_run=True) == 201


def test_pods_of_the_own_node_are_deleted_and_those_of_another_are_not(stolen: Stolen) -> None:
    assert stolen.delete(stolen.pod(stolen.node, "own")) == 200
    assert stolen.delete(stolen.pod(stolen.other, "theirs")) in REFUSED


def test_of_a_pods_status_nothing_but_the_disruption_may_be_written(stolen: Stolen) -> None:
    own, theirs = stolen.pod(stolen.node, "own"), stolen.pod(stolen.other, "theirs")

    def write(pod: dict[str, Any], **status: Any) -> int:
        return stolen("PATCH", f"{stolen.path(pod)}/status", {"status": status}, STRATEGIC)

    disrupted = {"type": "DisruptionTarget", "status": "True", "reason": "x", "message": "x"}
    ready = {"type": "Ready", "status": "True", "reason": "x", "message": "x"}
    assert write(own, conditions=[disrupted]) == 200
    assert write(theirs, conditions=[disrupted]) in REFUSED
    assert write(own, conditions=[ready]) in REFUSED
    assert write(own, phase="Failed") in REFUSED
    assert write(own, podIP="10.0.0.1") in REFUSED
