"""A server that refuses, times out, answers nobody, or forgets: no wrong action, and it heals without a restart."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agent.model.errors import UnreachableError
from tests.life import Life
from tests.remediation.test_repair import returned

SCHEDULES = settings(max_examples=15, deadline=None)


def unsteady(life: Life, chance: random.Random, share: float, until: float) -> None:
    """A share of the requests fails, before or after it was carried out, until the server is well again."""

    def api(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        if life.now > until or chance.random() > share:
            return life.cluster(method, path, *rest, **more)
        if chance.random() < 0.5:
            life.cluster(method, path, *rest, **more)  # carried out, and the answer is lost or wrong
        match chance.choice((409, 429, 500, 503, 0)):
            case 0:
                raise UnreachableError("timed out")
            case status:
                return status, {"message": f"the server says {status}"}

    life.api = api


@SCHEDULES
@given(seed=st.integers(0, 10**9), share=st.floats(0.02, 0.6), fault=st.sampled_from((95, 79)))
def test_through_any_refusals_a_node_is_repaired_once_and_returns(seed: int, share: float, fault: int) -> None:
    life = Life(fault)
    unsteady(life, random.Random(seed), share, life.now + 300)
    life.run(300)
    life.run(600, rests=True)
    assert len(life.repairs) == 1
    assert returned(life), life.waits


@SCHEDULES
@example(seed=51943, kills={16})  # a reset is done, and for longer than its proof may take nothing can be read
@given(seed=st.integers(0, 10**9), kills=st.sets(st.integers(1, 25), max_size=6))
def test_through_refusals_and_crashes_together_no_incident_is_repaired_twice(seed: int, kills: set[int]) -> None:
    life = Life(95, kills=kills)
    unsteady(life, random.Random(seed), 0.3, life.now + 300)
    life.run(300)
    life.run(600 + 300 * len(kills), rests=True)  # each new life waits for what the one before may have asked for
    assert len(life.repairs) == 1
    assert returned(life), life.waits


@pytest.mark.parametrize("snapshot_s", range(0, 60, 5))
def test_a_server_restored_from_an_old_snapshot_leads_to_no_wrong_action(snapshot_s: int) -> None:
    """What the machine does is checked by Life: no repair that isn't reserved, and none under running pods.

    A Job that the restored server has never heard of is ended by its kubelet, and may be begun once more.
    """
    for later_s in (5, 10, 20, 40, 60):
        life = Life(95)
        life.run(snapshot_s)
        snapshot = copy.deepcopy(life.cluster._objects)
        life.run(later_s)
        life.cluster._objects = snapshot
        life.cluster._version += 1000
        life.run(600, rests=True)
        life.run(60)
        assert returned(life), f"restored from {snapshot_s} s after {later_s} s: {life.waits}"
        assert len(life.ended) == 1, f"restored from {snapshot_s} s after {later_s} s"


def test_what_somebody_else_cured_meanwhile_is_not_repaired() -> None:
    life = Life(79, clients={})
    life.cluster.add_pod("research", "notebook", "n1", owner="")  # a person must move it
    life.run(50)
    life.reboots()  # while at it
    del life.cluster._objects["pods", "research", "notebook"]
    life.run(100)
    assert (life.repairs, returned(life)) == ([], True)
