"""A Node object that is made anew in the middle of a repair: nothing of the one before it is done twice or at once."""

from __future__ import annotations

import pytest

from agent.config.settings import Budget, Repair
from agent.model.names import NODE_UID_LABEL
from tests.life import CONFIG, OPERANDS, POLL_S, Life
from tests.remediation.test_repair import MERGE, RESET, job_of, returned


def begun(life: Life) -> None:
    """Its Job was made, and its pod runs."""
    job_of(life)
    life.tick()
    life.cluster.add_pod("gpu-health-agent", "a-reset", "n1", gpus=0, owner="Job")
    labels = {NODE_UID_LABEL: life.node()["metadata"]["uid"]}
    path = "/api/v1/namespaces/gpu-health-agent/pods/a-reset"
    life.cluster("PATCH", path, {"metadata": {"labels": labels}}, MERGE)


def made_anew(life: Life) -> None:
    del life.cluster._objects["nodes", "", "n1"]
    life.cluster.add_node("n1")
    life.cluster("PATCH", "/api/v1/nodes/n1", {"metadata": {"labels": OPERANDS}}, MERGE)


@pytest.mark.parametrize("restarts", [False, True])
def test_while_a_job_of_the_former_node_object_runs_no_other_is_begun_and_the_node_stays_withdrawn(
    restarts: bool,
) -> None:
    life = Life(RESET)
    begun(life)
    made_anew(life)
    if restarts:
        life._begin()
        life.breaks()  # its annotation is gone with the Node: the fault is seen anew
    life.run(100)
    assert (life.tainted(), life.repairs) == (True, ["reset_gpu"])
    assert any(
        "pod gpu-health-agent/a-reset, of a repair that a former Node object began, runs" in w for w in life.waits
    )
    del life.cluster._objects["pods", "gpu-health-agent", "a-reset"]
    life.run(600)
    assert (life.repairs, returned(life)) == (["reset_gpu"], True), life.waits


@pytest.mark.parametrize("out", [True, False])
def test_under_the_permit_that_it_had_it_is_withdrawn_only_within_the_budget_as_it_is_by_now(out: bool) -> None:
    life = Life(RESET, CONFIG.model_copy(update={"budget": Budget(max_withdrawn=1), "repair": Repair()}))
    life.run(60)
    made_anew(life)
    if out:
        life.cluster("PATCH", "/api/v1/nodes/n2", {"spec": {"unschedulable": True}}, MERGE)
    life._begin()
    life.breaks()
    life.run(60)
    assert life.tainted() is not out
    life.cluster("PATCH", "/api/v1/nodes/n2", {"spec": {"unschedulable": False}}, MERGE)
    life.run(600)
    assert life.tainted()


def test_its_withdrawal_and_its_drain_go_on_under_the_permits_that_it_had() -> None:
    life = Life(RESET, CONFIG.model_copy(update={"budget": Budget(max_withdrawn=1)}))
    life.cluster.add_pod("research", "notebook", "n1", owner="")  # a person must move it
    life.run(60)
    made_anew(life)
    life.run(POLL_S)
    uid = life.node()["metadata"]["uid"]
    assert life.tainted()
    assert f"n1/{uid}" in life.holders()
    assert {holder for holder in life.holders() if holder} == {f"n1/{uid}"}
