"""A new node's startup taint goes once all was seen well, and never comes back by the agent."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from agent.actions.kube import KubeClient
from agent.actions.removal import release
from agent.config.neighbour_settings import Gate
from agent.config.settings import Config, Mode
from agent.model import names
from agent.model.fault import Status, Verdict
from agent.model.ownership import GATE_TAINTS
from agent.model.remedy import Remedy
from agent.model.steps import Wait
from agent.model.world import Local
from agent.remediation.plan import plan
from agent.simulation.in_memory_cluster import InMemoryCluster
from tests.actions.test_kube import EVICT, FOREIGN, MERGE, cluster, drive, fatal, healthy, node, taints
from tests.observe import silent
from tests.remediation.test_taints import degraded

GATED = Config(mode=Mode.EVICT, gate=Gate(enabled=True))
HARD, SOFT = names.HARD_TAINT, names.SOFT_TAINT
BLIND = Verdict(0, Status.UNKNOWN, Remedy.NONE, blind=silent())
SEEN_WELL_BUT_BLIND = Verdict(0, Status.HEALTHY, Remedy.NONE, blind=silent())


def new(key: str = names.GATE_TAINT, effect: str = "NoSchedule") -> InMemoryCluster:
    made = cluster()
    gate = {"key": key, "value": "new", "effect": effect}
    made("PATCH", "/api/v1/nodes/n1", {"spec": {"taints": [FOREIGN, gate]}}, MERGE)
    return made


@pytest.mark.parametrize("key", GATE_TAINTS)
def test_it_goes_with_the_first_healthy_verdict_that_misses_nothing(key: str) -> None:
    made = new(key)
    client = KubeClient(made, "n1", GATED)
    for verdict in (BLIND, SEEN_WELL_BUT_BLIND, degraded(), fatal()):
        drive(client, verdict, GATED)
        assert key in taints(made), verdict
        waits = [s.why for s in plan(verdict, client.look(closely=True), GATED, Local()).steps if isinstance(s, Wait)]
        assert f"the node's startup taint {key} stays until every GPU was read, and nothing is wrong" in waits
    drive(client, healthy(), GATED)
    assert node(made)["spec"]["taints"] == [FOREIGN]


def test_beside_our_other_taints_it_stays_as_it_was() -> None:
    made = new()
    before = node(made)["spec"]["taints"]
    client = KubeClient(made, "n1", GATED)
    drive(client, degraded(), GATED)
    assert [one for one in node(made)["spec"]["taints"] if one["key"] != SOFT] == before
    drive(client, fatal(), GATED)
    assert [one for one in node(made)["spec"]["taints"] if one["key"] != HARD] == before


def test_it_is_never_set_again() -> None:
    made = new()
    client = KubeClient(made, "n1", GATED)
    drive(client, healthy(), GATED)
    drive(client, fatal(), GATED)
    drive(client, healthy(), GATED)
    assert taints(made) == [FOREIGN["key"]]


def test_without_the_setting_it_stays_and_that_is_said() -> None:
    made = new()
    client = KubeClient(made, "n1", EVICT)
    drive(client, healthy())
    assert taints(made) == [FOREIGN["key"], names.GATE_TAINT]
    waits = [s.why for s in plan(healthy(), client.look(closely=True), EVICT, Local()).steps if isinstance(s, Wait)]
    assert waits == [
        f"the node's startup taint {names.GATE_TAINT} stays: gate.enabled is off, so a person must remove it"
    ]


def test_it_needs_no_permit_and_counts_as_nobodys_withdrawal() -> None:
    made = new()
    drive(KubeClient(made, "n1", GATED), degraded(), GATED)
    assert "gpu-health-agent/withdrawn-by-others" not in node(made)["metadata"]["labels"]
    world = KubeClient(made, "n1", GATED).look(closely=False)
    assert world.permits is None
    assert any("Retaint" in type(step).__name__ for step in plan(healthy(), world, GATED, Local()).steps)


def test_whoever_takes_the_agent_off_takes_it_along() -> None:
    made = new()
    list(release(made, "gpu-health-agent", "n1"))
    assert taints(made) == [FOREIGN["key"]]


def test_the_rule_for_another_controller_lifts_once_and_names_what_is_reported() -> None:
    file = Path(__file__).parents[2] / "daemonset" / "overlays" / "gate" / "nodereadinessrule.yaml"
    spec = yaml.safe_load(file.read_text())["spec"]
    assert spec["enforcementMode"] == "bootstrap-only", "else a report would withdraw a node"
    wanted = [(one["type"], one["requiredStatus"]) for one in spec["conditions"]]
    assert wanted == [(names.UNHEALTHY, "False"), (names.DEGRADED, "False")]
    assert spec["taint"]["key"] not in GATE_TAINTS
