"""Karpenter's own controllers, with machines of kwok's, beside the agent: new nodes, withdrawn ones, replaced ones."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.model.names import GATE_TAINT, HARD_TAINT
from agent.model.neighbours import ACCELERATED, ASKED
from tests.cluster.conftest import AgentProcess, Site, StartAgent, composed
from tests.cluster.control_plane import ControlPlane
from tests.neighbours.beside import Place, beside
from tests.neighbours.programs import KARPENTER

KARPENTERS, MERGE = "/apis/karpenter.sh/v1", "application/merge-patch+json"
DISRUPTED, KEPT, GONE = "karpenter.sh/disrupted", "karpenter.sh/do-not-disrupt", "it is gone"
_POOLS = itertools.count(1)


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    folder = tmp_path_factory.mktemp("plane")
    with beside(KARPENTER, composed(tmp_path_factory.mktemp("overlay"), "eks", "gate"), folder, _arguments) as made:
        machines = {
            "apiVersion": "karpenter.kwok.sh/v1alpha1",
            "kind": "KWOKNodeClass",
            "metadata": {"name": "machines"},
        }
        made.must("POST", "/apis/karpenter.kwok.sh/v1alpha1/kwoknodeclasses", machines)
        yield made


def _arguments(place: Place) -> tuple[str, ...]:
    offers = [
        {
            "Price": 1.0,
            "Requirements": [
                {"key": "karpenter.sh/capacity-type", "operator": "In", "values": ["on-demand"]},
                {"key": "topology.kubernetes.io/zone", "operator": "In", "values": ["a"]},
            ],
        }
    ]
    machine = {
        "name": "eight-gpus",
        "architecture": "amd64",
        "operatingSystems": ["linux"],
        "resources": {"cpu": "64", "memory": "512Gi", "pods": "110", "nvidia.com/gpu": "8"},
        "offerings": offers,
    }
    (place.folder / "machines.json").write_text(json.dumps([machine]))
    return (
        f"--instance-types-file-path={place.folder}/machines.json",
        f"--health-probe-port={place.health}",
        "--disable-leader-election=true",
        "--feature-gates=NodeRepair=true",
    )


class Pool(Site):
    """A NodePool of Karpenter's whose nodes have our startup taint; each holds one pod, for it asks for all GPUs."""

    def __init__(self, plane: ControlPlane) -> None:
        self.plane, self.name = plane, f"k{next(_POOLS)}"
        plane.add_namespace(self.name)
        node = {
            "requirements": [{"key": "kubernetes.io/arch", "operator": "In", "values": ["amd64"]}],
            "nodeClassRef": {"group": "karpenter.kwok.sh", "kind": "KWOKNodeClass", "name": "machines"},
            "startupTaints": [{"key": GATE_TAINT, "value": "new", "effect": "NoSchedule"}],
            "expireAfter": "Never",
        }
        labels = {"site": self.name, "nvidia.com/gpu.present": "true"}
        spec = {
            "template": {"metadata": {"labels": labels}, "spec": node},
            "disruption": {"consolidationPolicy": "WhenEmpty", "consolidateAfter": "Never"},
        }
        pool = {"apiVersion": "karpenter.sh/v1", "kind": "NodePool", "metadata": {"name": self.name}, "spec": spec}
        plane.must("POST", f"{KARPENTERS}/nodepools", pool)

    def remove(self) -> None:
        self.plane.kubectl("delete", "namespace", self.name, "--wait=false")
        self.plane.kubectl("delete", "nodepool", self.name, "--wait=false")

    def ask(self, name: str) -> str:
        """A Deployment of one pod, for which Karpenter makes a node: its name."""
        before = self.claims()
        template = {"metadata": {"labels": {"app": name}}, "spec": self._pod(gpus=8)}
        spec = {"replicas": 1, "selector": {"matchLabels": {"app": name}}, "template": template}
        made = {"metadata": {"name": name}, "spec": spec}
        self.plane.must("POST", f"/apis/apps/v1/namespaces/{self.name}/deployments", made)
        return self.newest(before)

    def start(self, name: str) -> str:
        """The same, and it runs there."""
        node = self.ask(name)
        self.open(node)
        self.plane.wait("it runs", lambda: self.running(name) == [node])
        return node

    def newest(self, before: dict[str, dict[str, Any]]) -> str:
        """The node that is not among these, once it is registered."""

        def new() -> list[str]:
            return [node for node, one in self.claims().items() if node and node not in before and registered(one)]

        self.plane.wait("it is registered", lambda: len(new()) == 1)
        return new()[0]

    def claims(self) -> dict[str, dict[str, Any]]:
        """The NodeClaims of the pool, by node; one whose node is not there yet has none."""
        listed = self.plane.must("GET", f"{KARPENTERS}/nodeclaims?labelSelector=karpenter.sh/nodepool%3D{self.name}")
        return {one.get("status", {}).get("nodeName", ""): one for one in listed["items"]}

    def said(self, node: str, kind: str) -> tuple[str, str]:
        """A condition of the node's NodeClaim: its status and its reason."""
        return said(self.claims().get(node, {}), kind)

    def open(self, node: str) -> None:
        """As its agent would."""
        self.plane.must("PATCH", f"/api/v1/nodes/{node}", {"spec": {"taints": None}}, MERGE)
        self.plane.wait("it is initialized", lambda: self.said(node, "Initialized")[0] == "True")

    def disruption(self, **changes: Any) -> None:
        body = {"spec": {"disruption": changes}}
        self.plane.must("PATCH", f"{KARPENTERS}/nodepools/{self.name}", body, MERGE)

    def annotate(self, node: str, key: str, value: str | None) -> None:
        self.plane.must("PATCH", f"/api/v1/nodes/{node}", {"metadata": {"annotations": {key: value}}}, MERGE)

    def told(self) -> list[str]:
        """Events of the NodePool."""
        events = self.plane.must("GET", "/api/v1/namespaces/default/events")["items"]
        return [one["message"] for one in events if one["involvedObject"].get("name") == self.name]

    def on(self, node: str) -> set[str]:
        """The keys of its taints."""
        status, body = self.plane.request("GET", f"/api/v1/nodes/{node}")
        return {taint["key"] for taint in body["spec"].get("taints") or ()} if status == 200 else {GONE}


def said(claim: dict[str, Any], kind: str) -> tuple[str, str]:
    conditions = claim.get("status", {}).get("conditions", ())
    return next(((one["status"], one["reason"]) for one in conditions if one["type"] == kind), ("absent", ""))


def registered(claim: dict[str, Any]) -> bool:
    return said(claim, "Registered")[0] == "True"


@pytest.fixture
def site(plane: ControlPlane) -> Iterator[Pool]:
    made = Pool(plane)
    yield made
    made.remove()


def started(site: Pool, agent: StartAgent, **settings: Any) -> AgentProcess:
    running = agent(simulate="idle", **settings)
    site.plane.wait("healthy", lambda: running.state()["status"] == "healthy")
    return running


def test_a_new_node_counts_as_initialized_once_its_agent_has_found_nothing(site: Pool, agent: StartAgent) -> None:
    node = site.ask("train")
    site.nodes = (node, "")
    site.plane.wait("it waits", lambda: site.said(node, "Initialized") == ("Unknown", "StartupTaintsExist"))
    assert site.running("train") == []
    started(site, agent, gate={"enabled": True})
    site.plane.wait("it is initialized", lambda: site.said(node, "Initialized")[0] == "True")
    site.plane.wait("its pod runs", lambda: site.running("train") == [node])
    assert GATE_TAINT not in site.on(node)


def test_a_withdrawn_node_is_no_drift_and_kept_from_consolidation_it_stays_while_its_pods_get_another(
    site: Pool, agent: StartAgent
) -> None:
    bad = site.start("train")
    site.nodes = (bad, "")
    site.annotate(bad, KEPT, "true")
    site.disruption(consolidateAfter="0s", budgets=[{"nodes": "1"}])
    before, running = site.claims(), started(site, agent)
    running.inject("--gpu", "3", "--xid", "95")
    site.plane.wait("withdrawn", lambda: HARD_TAINT in site.on(bad))
    other = site.newest(before)
    site.open(other)
    site.plane.wait("its pod runs elsewhere", lambda: site.running("train") == [other])
    site.plane.wait("it is known to be empty", lambda: site.said(bad, "Consolidatable")[0] == "True")
    time.sleep(25)  # it looks each ten seconds
    assert (site.said(bad, "Drifted")[0], site.on(bad)) == ("absent", {HARD_TAINT})
    site.annotate(bad, KEPT, None)
    site.disruption(budgets=[{"nodes": "1"}])
    site.plane.wait(
        "without that word no empty node is left for a repair", lambda: site.on(bad) & {DISRUPTED, GONE}, 90
    )


def test_a_drained_node_that_needs_another_is_replaced_as_far_as_the_pools_budget_allows(
    site: Pool, agent: StartAgent
) -> None:
    bad = site.start("train")
    site.nodes = (bad, "")
    site.disruption(budgets=[{"nodes": "0", "reasons": ["Unhealthy"]}])
    before = site.claims()
    running = started(site, agent, presets=["eks"], repair={"request_replacement": True})
    running.inject("--gpu", "3", "--xid", "64")
    other = site.newest(before)
    site.open(other)
    site.plane.wait("it is asked for", lambda: site.condition(ACCELERATED)["status"] == "False")
    assert (site.running("train"), site.condition(ACCELERATED)["reason"]) == ([other], ASKED)
    said = "No allowed disruptions for disruption reason Unhealthy due to blocking budget"
    site.plane.wait("its pool's budget is in the way", lambda: said in site.told())
    assert site.on(bad) == {HARD_TAINT}
    site.disruption(budgets=[{"nodes": "1"}])
    site.plane.wait("it is replaced", lambda: site.on(bad) == {GONE}, 120)
    assert list(site.claims()) == [other]


def test_a_node_that_karpenter_takes_away_is_not_acted_on_and_counts_as_out_of_service(
    site: Pool, agent: StartAgent, tmp_path: Path
) -> None:
    goes, stays = site.start("guarded"), site.start("train")
    site.budget("guarded", 1)
    site.nodes = (goes, stays)
    running = started(site, agent)
    site.plane.kubectl("delete", "nodeclaim", site.claims()[goes]["metadata"]["name"], "--wait=false")
    site.plane.wait("it is to go", lambda: DISRUPTED in site.on(goes))
    running.inject("--gpu", "3", "--xid", "95")
    why = f"Karpenter replaces the node (taint {DISRUPTED})"
    site.plane.wait("it is told", lambda: any(why in one for one in running.state()["waits"]))
    assert (site.running("guarded"), site.on(goes)) == ([goes], {DISRUPTED})
    site.nodes = (stays, goes)
    (folder := tmp_path / "other").mkdir()
    other = AgentProcess(site, folder, site.plane.agent_kubeconfig(stays), "idle", "evict", {})
    other.start()
    try:
        site.plane.wait("healthy", lambda: other.state()["status"] == "healthy")
        other.inject("--gpu", "3", "--xid", "95")
        why = f"out of service otherwise: {goes}"
        site.plane.wait("it counts", lambda: any(why in one for one in other.state()["waits"]))
        assert (site.running("train"), site.on(stays)) == ([stays], set())
    finally:
        other.stop()
