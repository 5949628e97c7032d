"""The presets on a real API server: what the agent writes with its own token, and what a stolen one can't."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from agent.model.neighbours import ACCELERATED, ASKED, AUTOSCALER_TAINT, CORDON_MARK, CORDON_REASON, NOT_ASKED, Preset
from agent.model.ownership import GATE_TAINTS
from tests.cluster.build import assets
from tests.cluster.conftest import Site, StartAgent, composed
from tests.cluster.control_plane import ControlPlane
from tests.cluster.test_policies import REFUSED, Stolen

HARD = {"key": "gpu-health-agent/unhealthy", "value": "reboot_node", "effect": "NoSchedule"}
OURS = {"key": AUTOSCALER_TAINT.key, "value": AUTOSCALER_TAINT.value, "effect": AUTOSCALER_TAINT.effect}
THEIRS = {"key": AUTOSCALER_TAINT.key, "value": "theirs", "effect": "NoSchedule"}
MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """All presets' components beside the repair's, which comes last: their order must not matter."""
    made = ControlPlane(tmp_path_factory.mktemp("plane"), assets())
    made.up(nodes=0)
    made.install(composed(tmp_path_factory.mktemp("overlay"), *Preset, "gate", "repair"))
    yield made
    made.down()


@pytest.fixture
def stolen(site: Site) -> Stolen:
    return Stolen(site)


def write(site: Site, taints: list[dict[str, str]]) -> None:
    """By another's hand."""
    site.plane.must("PATCH", f"/api/v1/nodes/{site.nodes[0]}", {"spec": {"taints": taints}}, MERGE)


def say(stolen: Stolen, status: str, reason: str) -> int:
    told = {"type": ACCELERATED, "status": status, "reason": reason, "message": "x"}
    return stolen.patch({"status": {"conditions": [told]}}, status=True)


def test_only_our_own_taint_for_the_autoscaler_may_be_written(stolen: Stolen) -> None:
    assert stolen.taint(HARD, OURS) == 200
    assert stolen.taint(HARD, THEIRS) in REFUSED
    assert stolen.taint(HARD, {**OURS, "effect": "NoExecute"}) in REFUSED
    assert stolen.taint() == 200
    write(stolen.site, [THEIRS])
    assert stolen.taint() in REFUSED
    assert "no taint but its own" in stolen.why
    assert stolen.taint(OURS) in REFUSED
    assert stolen.taint(THEIRS, HARD) == 200


def test_only_our_own_word_to_karpenter_may_be_written(stolen: Stolen) -> None:
    assert say(stolen, "False", "DCGMError") in REFUSED
    assert say(stolen, "False", ASKED) == 200
    assert say(stolen, "True", NOT_ASKED) == 200
    theirs = {"type": ACCELERATED, "status": "True", "reason": "NvidiaAcceleratedHardwareIsReady", "message": "x"}
    path = f"/api/v1/nodes/{stolen.node}/status"
    stolen.plane.must("PATCH", path, {"status": {"conditions": [theirs]}}, STRATEGIC)
    assert say(stolen, "False", ASKED) in REFUSED
    assert "no condition of a Node but its own" in stolen.why
    gone = {"type": ACCELERATED, "$patch": "delete"}
    assert stolen.patch({"status": {"conditions": [gone]}}, status=True) in REFUSED


@pytest.mark.parametrize(
    ("before", "value", "key"),
    [
        (None, "XID", "cloud.google.com/fault-behavior"),
        ("Schedulable", "UnschedulablePendingReplacement", "sagemaker.amazonaws.com/node-health-status"),
    ],
)
def test_only_between_two_values_of_a_providers_label_may_be_changed(
    stolen: Stolen, key: str, before: str | None, value: str
) -> None:
    def put(said: str | None) -> int:
        return stolen.patch({"metadata": {"labels": {key: said}}}, status=True)

    def theirs(said: str | None) -> None:
        stolen.plane.must("PATCH", f"/api/v1/nodes/{stolen.node}", {"metadata": {"labels": {key: said}}}, MERGE)

    theirs(before)
    assert put("another") in REFUSED
    assert put(value) == 200
    assert put("another") in REFUSED
    assert put(before) == 200
    theirs("another")
    assert put(value) in REFUSED
    assert put(before) in REFUSED
    assert put(None) in REFUSED


def test_a_node_may_be_cordoned_and_uncordoned_with_our_own_reason_only(stolen: Stolen) -> None:
    def cordon(on: bool | None, reason: str | None) -> int:
        return stolen.patch({"spec": {"unschedulable": on}, "metadata": {"annotations": {CORDON_REASON: reason}}})

    def theirs(on: bool | None, reason: str | None) -> None:
        body = {"spec": {"unschedulable": on}, "metadata": {"annotations": {CORDON_REASON: reason}}}
        stolen.plane.must("PATCH", f"/api/v1/nodes/{stolen.node}", body, MERGE)

    ours = f"{CORDON_MARK}reset_gpu"
    assert stolen.patch({"spec": {"unschedulable": True}}) in REFUSED
    assert cordon(True, "theirs") in REFUSED
    assert cordon(True, ours) == 200
    assert cordon(True, "theirs") in REFUSED
    assert cordon(None, None) == 200
    for reason in (None, "theirs"):
        theirs(True, reason)
        assert cordon(None, reason) in REFUSED
        assert "undo no cordon but its own" in stolen.why
        assert cordon(True, ours) in REFUSED, "it would be ours"
    theirs(None, None)


@pytest.mark.parametrize("key", GATE_TAINTS)
def test_a_startup_taint_may_be_taken_off_and_never_set_or_changed(stolen: Stolen, key: str) -> None:
    gate = {"key": key, "value": "new", "effect": "NoSchedule"}
    assert stolen.taint(gate) in REFUSED
    write(stolen.site, [gate])
    assert stolen.taint({**gate, "value": "other"}) in REFUSED
    assert stolen.taint(gate, HARD) == 200
    assert stolen.taint() == 200


def test_what_a_repair_writes_may_be_written_beside_it(stolen: Stolen) -> None:
    assert stolen.patch({"metadata": {"labels": {"nvidia.com/gpu.deploy.dcgm": "false"}}}) == 200
    asks = {"type": "GpuReplacementRequested", "status": "True", "reason": "x", "message": "x"}
    assert stolen.patch({"status": {"conditions": [asks]}}, status=True) == 200


def withdrawn(site: Site, agent: StartAgent, xid: str, **settings: Any) -> Any:
    running = agent(simulate="idle", **settings)
    site.plane.wait("healthy", lambda: running.state()["status"] == "healthy")
    running.inject("--gpu", "3", "--xid", xid)
    site.plane.wait("withdrawn", lambda: HARD["key"] in site.taints())
    return running


def dismiss(site: Site, rule: str, running: Any) -> None:
    """The kernel's word and the driver's."""
    address = running.state()["faults"][0]["id"].partition("@")[2]
    word = {"metadata": {"annotations": {"gpu-health-agent/dismiss": f"{rule}@{address},recovery-action@{address}"}}}
    site.plane.must("PATCH", f"/api/v1/nodes/{site.nodes[0]}", word, MERGE)


def test_the_autoscalers_taint_stands_for_the_time_of_the_withdrawal(site: Site, agent: StartAgent) -> None:
    running = withdrawn(site, agent, "95", presets=["cluster-autoscaler"])
    assert site.taints() == [HARD["key"], OURS["key"]]
    dismiss(site, "xid-95", running)
    site.plane.wait("returned", lambda: site.taints() == [])


def test_anothers_taint_for_the_autoscaler_outlives_a_withdrawal(site: Site, agent: StartAgent) -> None:
    write(site, [THEIRS])
    running = withdrawn(site, agent, "95", presets=["cluster-autoscaler"])
    assert site.taints() == [THEIRS["key"], HARD["key"]]
    dismiss(site, "xid-95", running)
    site.plane.wait("returned", lambda: site.node()["spec"].get("taints") == [THEIRS])


def test_karpenter_is_asked_once_the_node_is_drained_and_no_longer_once_it_is_well(
    site: Site, agent: StartAgent
) -> None:
    site.deploy("train", 1, pin=site.nodes[0])
    site.budget("train", 1)
    running = withdrawn(site, agent, "64", presets=["eks"], repair={"request_replacement": True})
    site.plane.wait("refused", lambda: any("may not be evicted yet" in why for why in running.state()["waits"]))
    assert site.condition(ACCELERATED)["status"] == "absent"
    budget = f"/apis/policy/v1/namespaces/{site.name}/poddisruptionbudgets/train"
    site.plane.must("DELETE", budget)
    site.plane.wait("asked", lambda: site.condition(ACCELERATED)["status"] == "False")
    assert (site.running("train"), site.condition(ACCELERATED)["reason"]) == ([site.nodes[1]], ASKED)
    dismiss(site, "xid-64", running)
    site.plane.wait("returned", lambda: site.taints() == [])
    site.plane.wait("taken back", lambda: site.condition(ACCELERATED)["status"] == "True")
