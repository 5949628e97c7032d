"""The check before a node returns: passed, failed, dismissed, and through any crash."""

from __future__ import annotations

import pytest

from agent.explain import stored
from tests.life import CHECK, CONFIG, Life
from tests.observe import OTHER
from tests.policy.test_repair import MERGE, RESET, returned

CHECKED = CONFIG.model_copy(update={"repair": CONFIG.repair.model_copy(update={"check": CHECK})})


def dismiss(life: Life, word: str) -> None:
    body = {"metadata": {"annotations": {"gpu-health-agent/dismiss": word}}}
    life.cluster("PATCH", "/api/v1/nodes/n1", body, MERGE)


def state(life: Life) -> str:
    return str(life.node()["metadata"]["labels"]["gpu-health-agent/state"])


def test_a_cured_node_is_checked_before_it_returns() -> None:
    life = Life(RESET, CHECKED)
    while "check" not in life.repairs:
        life.tick()
    assert (life.tainted(), state(life)) == (True, "validating")
    life.run(100)
    assert (life.repairs, returned(life)) == (["reset_gpu", "check"], True)


def test_a_node_that_fails_its_check_never_returns_until_a_person_dismisses_that() -> None:
    life = Life(RESET, CHECKED, passes=False)
    life.run(3000)
    assert (life.repairs, life.tainted(), state(life)) == (["reset_gpu", "check"], True, "unhealthy")
    said = "the check before the return failed (exit 1): a person must decide; check@node dismisses it"
    assert life.waits == (said,)
    life._begin()
    life.run(100)
    assert (life.tainted(), life.waits) == (True, (said,))
    assert life.world
    assert "check, attempt 1 (Job gpu-health-check-" in stored(life.world, CHECKED)["waits"][0]
    dismiss(life, "check@node")
    life.run(20)
    assert returned(life)


def test_a_node_whose_fault_a_person_dismissed_is_not_checked() -> None:
    life = Life(RESET, CHECKED, clients={"GPU-0000:1b:00.0": {"1": ""}})
    life.run(50)
    assert life.tainted()
    dismiss(life, "xid-95@0000:1b:00.0,recovery-action@0000:1b:00.0")
    life.run(50)
    assert (life.repairs, returned(life)) == ([], True)


def test_a_fault_during_the_check_is_repaired_first_and_the_check_comes_again() -> None:
    life = Life(RESET, CHECKED)
    while "check" not in life.repairs:
        life.tick()
    life.breaks(OTHER)
    life.run(400)
    assert (life.repairs, returned(life)) == (["reset_gpu", "check"] * 2, True)


@pytest.mark.parametrize("passes", [True, False])
def test_killed_after_any_write_of_the_check_it_is_made_once(passes: bool) -> None:
    plain = Life(RESET, CHECKED, passes=passes)
    plain.run(250)
    for kill in range(plain.writes - 9, plain.writes + 1):
        life = Life(RESET, CHECKED, passes=passes, kills=[kill])
        life.run(250)
        assert (life.repairs, returned(life)) == (["reset_gpu", "check"], passes), (kill, life.waits)
