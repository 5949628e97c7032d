"""The judge says what is wrong; what is to be done about it is said beside that, and everywhere the same."""

from __future__ import annotations

from agent.config.limits import Limits
from agent.model.remedy import Remedy
from agent.remediation.case import Treatment
from agent.status.snapshot import Snapshot
from agent.status.state import state
from tests.life import UUID, Life
from tests.remediation.test_idle_reset import ELSEWHERE, IDLE, idle
from tests.remediation.test_repair import MERGE, REBOOT, RESET


def treatment(life: Life) -> Treatment:
    assert life.planned.treatment
    return life.planned.treatment


def test_a_harder_remedy_is_the_treatments_and_the_verdict_stays_the_judges() -> None:
    life = Life(RESET, cures=lambda remedy: remedy != "reset_gpu")
    while "reboot_node" not in life.repairs:
        life.tick()
    assert (life.verdict.remedy, treatment(life).remedy) == (Remedy.RESET_GPU, Remedy.REBOOT_NODE)
    assert treatment(life).faults == life.verdict.fatal
    assert life.node()["spec"]["taints"][0]["value"] == "reboot_node"


def test_a_degraded_fault_is_treated_once_its_gpu_is_idle_and_the_verdict_withdraws_nothing() -> None:
    life = idle(clients={UUID: {"4711": ""}, ELSEWHERE: {}})
    life.run(30)
    assert life.planned.treatment is None
    life.clients[UUID] = {}
    while not life.repairs:
        life.tick()
    assert (treatment(life).idle, treatment(life).remedy) == (True, Remedy.RESET_GPU)
    assert treatment(life).gpus == {UUID}
    assert (life.verdict.withdraw, life.verdict.fatal) == (False, ())


def test_gpus_go_along_with_a_reset_only_where_one_is_configured() -> None:
    life = Life(RESET, linked=True)
    life.run(30)
    assert treatment(life).reset_set == {UUID, ELSEWHERE}
    life = Life(RESET, IDLE.model_copy(update={"repair": type(IDLE.repair)()}), linked=True)
    life.run(30)
    assert (treatment(life).reset_set, life.verdict.linked[UUID]) == (frozenset({UUID}), frozenset({ELSEWHERE}))


def test_a_node_that_nobody_may_touch_has_no_treatment() -> None:
    life = Life(REBOOT)
    life.cluster("PATCH", "/api/v1/nodes/n1", {"metadata": {"labels": {"gpu-health-agent/managed": "false"}}}, MERGE)
    life.run(20)
    assert (life.verdict.withdraw, life.planned.treatment) == (True, None)


def test_state_tells_what_is_to_be_done_beside_what_is_wrong() -> None:
    life = Life(RESET, linked=True)
    life.run(30)
    told = state(Snapshot("n1", "evict", life.verdict, treatment=treatment(life)), Limits())
    assert told["treatment"] == {
        "remedy": "reset_gpu",
        "faults": [f.finding.id for f in life.verdict.fatal],
        "reset_together_with": [ELSEWHERE],
        "idle": False,
    }
    assert state(Snapshot("n1", "evict", life.verdict), Limits())["treatment"] is None
