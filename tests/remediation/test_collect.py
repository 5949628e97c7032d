"""Evidence before the repair: one Job in an incident, while the node is drained, and no obstacle to anything."""

from __future__ import annotations

from typing import Any

import pytest

from agent.model.names import HISTORY_ANNOTATION
from agent.remediation.ledger_json import load
from tests.life import CONFIG, EVIDENCE, POLL_S, Life
from tests.remediation.test_repair import RESET, returned

COLLECT_S = 100
CONFIGURED = CONFIG.model_copy(
    update={"repair": CONFIG.repair.model_copy(update={"collect": EVIDENCE, "collect_s": COLLECT_S})}
)


def jobs(life: Life) -> list[str]:
    return [job["metadata"]["name"] for job in life._jobs() if "-collect-" in job["metadata"]["name"]]


def test_evidence_is_taken_once_before_the_first_remedy_and_where_stands_in_the_ledger() -> None:
    life = Life(RESET, config=CONFIGURED, cures=lambda _: False)
    life.run(600)
    assert life.repairs[:3] == ["collect", "reset_gpu", "reset_gpu"]
    assert life.repairs.count("collect") == 1
    (name,) = jobs(life)
    (entry,) = load(life.node()["metadata"]["annotations"][HISTORY_ANNOTATION]).entries
    assert entry.collected == name
    (job,) = (one for one in life._jobs() if one["metadata"]["name"] == name)
    assert job["spec"]["activeDeadlineSeconds"] == COLLECT_S


def test_no_pod_waits_for_it() -> None:
    plain, life = Life(RESET), Life(RESET, config=CONFIGURED)
    for one in (plain, life):
        while "research/train" not in one.cluster.evicted:
            one.tick()
    assert life.now == plain.now
    life.run(20)
    assert jobs(life)


def refusing(life: Life) -> None:
    def refuse(method: str, path: str, body: Any = None, *rest: Any, **more: Any) -> Any:
        if method == "GET" and path.endswith(f"/cronjobs/{EVIDENCE}"):
            return 404, {"message": "no such template"}
        return life.cluster(method, path, body, *rest, **more)

    life.api = refuse


def hanging(life: Life) -> None:
    while not jobs(life):
        life.tick()
    (uid,) = (job["metadata"]["uid"] for job in life._jobs())
    life.began[uid] = float("inf")


def failing(life: Life) -> None:
    life.exit_code = 1
    while "collect" not in life.repairs:
        life.tick()
    life.run(3 * POLL_S)
    life.exit_code = 0


@pytest.mark.parametrize(("fails", "most_s"), [(refusing, COLLECT_S + 60), (hanging, COLLECT_S + 60), (failing, 0)])
def test_that_it_fails_or_hangs_or_cannot_be_made_is_no_obstacle(fails: Any, most_s: int) -> None:
    plain, life = Life(RESET), Life(RESET, config=CONFIGURED)
    fails(life)
    if fails is refusing:
        life.run(60)
        events = life.cluster("GET", "/api/v1/namespaces/research/events")[1]["items"]
        assert "MovedForGpuFault" in {event["reason"] for event in events}
    for one in (plain, life):
        while "reset_gpu" not in one.repairs or not returned(one):
            one.tick()
    assert life.repairs[-1] == "reset_gpu"
    assert plain.now < life.now <= plain.now + most_s + 8 * POLL_S


def test_killed_after_any_write_it_is_taken_once_and_the_node_returns_after_one_repair() -> None:
    whole = Life(RESET, config=CONFIGURED)
    whole.run(600, rests=True)
    for write in range(1, whole.writes + 1, 2):
        life = Life(RESET, config=CONFIGURED, kills=(write,))
        life.run(900, rests=True)
        assert (life.repairs, returned(life)) == (["collect", "reset_gpu"], True), (write, life.waits)
