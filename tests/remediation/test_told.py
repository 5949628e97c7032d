"""What the agent does is told on the Node, once, and never before it is so."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from agent.actions.kube import KubeClient
from agent.config.settings import Budget, Config, Mode
from tests.actions.test_kube import EVICT, cluster, drive, fatal
from tests.life import Life
from tests.observe import GPU, Judge, alive, reading, xid


def reasons(life: Life) -> list[str]:
    return [one["reason"] for one in life.cluster("GET", "/api/v1/namespaces/default/events")[1]["items"]]


def lived(life: Life, ticks: int = 400) -> Life:
    for _ in range(ticks):
        life.tick()
        if life.repairs and not life.tainted():
            break
    return life


def test_a_node_that_is_repaired_is_told_from_its_withdrawal_to_its_return() -> None:
    told = reasons(lived(Life(95)))
    assert told.index("Withdrawn") < told.index("RepairBegun") < told.index("CureProved") < told.index("Returned")
    assert max(Counter(told).values()) == 1


def test_a_repair_that_fails_is_told_with_its_reason() -> None:
    life = Life(95, cures=lambda _: False, exit_code=1)
    for _ in range(200):
        life.tick()
    told = reasons(life)
    assert "RepairFailed" in told
    assert "Returned" not in told


@pytest.mark.parametrize("restarted", [False, True])
def test_each_is_told_once_whoever_tells_it(restarted: bool) -> None:
    made = cluster()
    client = KubeClient(made, "n1", EVICT)
    for _ in range(4):
        drive(KubeClient(made, "n1", EVICT) if restarted else client, fatal())
    told = [one["reason"] for one in made("GET", "/api/v1/namespaces/default/events")[1]["items"]]
    assert told == ["Xid79", "Withdrawn"]


def test_a_spent_budget_is_told_with_who_has_the_permits() -> None:
    made, config = cluster(), Config(mode=Mode.EVICT, budget=Budget(max_withdrawn=1))
    for name in ("n1", "n2", "n2"):
        drive(KubeClient(made, name, config), fatal(), config)
    events = made("GET", "/api/v1/namespaces/default/events")[1]["items"]
    (spent,) = [one for one in events if one["reason"] == "BudgetSpent"]
    assert (spent["involvedObject"]["name"], spent["message"]) == (
        "n2",
        "not withdrawn: the budget is spent: 1 of 1 taken, by n1 (withdrawn permits, pool of 2 nodes)",
    )


def test_who_holds_a_drain_up_is_told_pod_by_pod_and_a_few_of_them() -> None:
    made = cluster()
    for number in range(12):
        made.add_pod("research", f"bare-{number}", "n1", owner="")

    def guarded(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        if path.endswith("/eviction"):
            details = {"causes": [{"reason": "DisruptionBudget"}]}
            return 429, {"message": "it would violate the pod's disruption budget.", "details": details}
        return made(method, path, *rest, **more)

    drive(KubeClient(guarded, "n1", EVICT), fatal())
    events = made("GET", "/api/v1/namespaces/default/events")[1]["items"]
    told = Counter(one["reason"] for one in events)
    assert told == {"Xid79": 1, "Withdrawn": 1, "EvictionRefused": 1, "PodNeedsPerson": 8}
    (refused,) = [one["message"] for one in events if one["reason"] == "EvictionRefused"]
    assert refused.startswith("pod research/train may not be evicted yet: it would violate")


def test_in_observe_nothing_is_told_but_the_fault() -> None:
    made = cluster()
    drive(KubeClient(made, "n1", Config()), fatal(), Config())
    assert [one["reason"] for one in made("GET", "/api/v1/namespaces/default/events")[1]["items"]] == ["Xid79"]


def test_a_dismissal_is_told() -> None:
    life = Life(95)
    while not life.tainted():
        life.tick()
    patch = {"metadata": {"annotations": {"gpu-health-agent/dismiss": f"xid-95@{GPU}"}}}
    life.cluster("PATCH", "/api/v1/nodes/n1", patch, "application/merge-patch+json")
    for _ in range(20):
        life.tick()
    assert "Dismissed" in reasons(life)


@pytest.mark.parametrize(
    ("code", "kind"), [(13, "Normal"), (31, "Normal"), (43, "Normal"), (45, "Normal"), (95, "Warning")]
)
def test_what_is_a_programs_own_error_is_told_as_normal_and_what_is_the_gpus_as_a_warning(code: int, kind: str) -> None:
    made, judge = cluster(), Judge()
    judge.after(0, alive(), reading())
    drive(KubeClient(made, "n1", Config()), judge.after(1, xid(code)), Config())
    (event,) = made("GET", "/api/v1/namespaces/default/events")[1]["items"]
    assert (event["reason"], event["type"]) == (f"Xid{code}", kind)
