"""A node that waits for a permit asks as much in a large pool as in a small one, and hears of one that comes free."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.actions.fleet import read_fleet
from agent.actions.kube import KubeClient
from agent.config.settings import Budget, Config, Mode
from agent.model.errors import RefusedError, UnreachableError
from agent.model.names import FREE_LABEL, OUT_LABEL, POOL_SIZE_ANNOTATION, WITHDRAWN_LABEL
from agent.model.steps import TakePermit
from agent.model.world import Local, PermitKind
from agent.remediation.plan import plan
from agent.simulation.in_memory_cluster import InMemoryCluster
from tests.actions.test_kube import MERGE, drive, fatal, healthy, taints
from tests.actions.test_permits import AT_ONCE, Clock, Fleet
from tests.actions.test_pool import LEASES

CONFIG = Config(mode=Mode.TAINT, recurrence=AT_ONCE, budget=Budget(max_withdrawn="10%"))
LOOK_S = 52.0  # as the act loop does while it waits, on the average
BAD = fatal()


class Pool:
    """So many nodes, of which the first tenth are out under all permits. The others wait."""

    def __init__(self, size: int) -> None:
        self.cluster, self.clock, self.asked, self.bytes = InMemoryCluster(), Clock(), 0, 0
        self.names = [f"n{i}" for i in range(size)]
        for name in self.names:
            self.cluster.add_node(name)
        self.holders, self.waiting = self.names[: size // 10], self.names[size // 10 :]
        self.clients = {name: KubeClient(self._counted, name, CONFIG, self.clock) for name in self.names}
        for name in self.holders:
            drive(self.clients[name], BAD, CONFIG)
            assert taints(self.cluster, name)

    def _counted(self, method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        answer = self.cluster(method, path, *rest, **more)
        if "/nodes/" not in path and "/configmaps/" not in path:
            self.asked, self.bytes = self.asked + 1, self.bytes + len(json.dumps(answer[1]))
        return answer

    def withdrawn(self) -> set[str]:
        return {name for name in self.names if taints(self.cluster, name)}

    def minute_by_minute(self, *waiting: str, holders: tuple[str, ...] | None = None) -> Iterator[float]:
        """Each of these looks once in ``LOOK_S``, and the holders confirm; how long it has been."""
        began = self.clock.now
        while True:
            for name in waiting:
                drive(self.clients[name], BAD, CONFIG, rounds=3)
                self.clock.now += LOOK_S / len(waiting)
            assert len(self.withdrawn()) <= len(self.names) // 10
            for name in self.holders if holders is None else holders:
                drive(self.clients[name], BAD, CONFIG, rounds=1)
            yield self.clock.now - began


@pytest.mark.parametrize("size", [60, 300])
def test_waiting_costs_two_requests_and_four_kilobytes_a_minute_whatever_the_pool(size: int) -> None:
    pool = Pool(size)
    one = pool.clients[pool.waiting[0]]
    one.look(closely=True)
    pool.asked = pool.bytes = 0
    held = [key for key in pool.cluster._objects if key[0] == "leases"]
    for _ in range(70):
        pool.clock.now += LOOK_S
        for key in held:  # a confirmation changes a Lease, and costs the one that waits nothing
            pool.cluster._store("leases", key[1], pool.cluster._objects[key])
        one.look(closely=True)
    minutes = 70 * LOOK_S / 60
    assert pool.asked / minutes <= 2
    assert pool.bytes / minutes <= 4000


@pytest.mark.parametrize(("said", "reads"), [({}, 0), ({0: "9" * 5}, 1), ({0: "-1", 1: "0", 2: "x", 3: "9" * 99}, 0)])
def test_a_node_that_turns_sick_when_all_permits_are_held_reads_no_pool_unless_a_holder_says_that_it_is_larger(
    said: dict[int, str], reads: int
) -> None:
    """Whatever a holder says: it costs a reading of the pool at the most, and gives nobody a permit."""
    pool = Pool(110)
    for index, size in said.items():
        change = {"metadata": {"annotations": {POOL_SIZE_ANNOTATION: size}}}
        pool.cluster("PATCH", f"{LEASES}/gpu-health-agent-withdrawn-gpu-{index}", change, MERGE)
    pool.cluster.requests.clear()
    client = KubeClient(pool.cluster, pool.waiting[0], CONFIG, pool.clock)
    drive(client, BAD, CONFIG)
    assert pool.cluster.requests.count(("GET", "/api/v1/nodes")) == 2 * reads
    assert pool.withdrawn() == {*pool.holders}


def test_holders_that_all_say_that_the_pool_is_small_keep_nobody_waiting_for_ever() -> None:
    pool = Pool(110)
    for index in range(11):
        change = {"metadata": {"annotations": {POOL_SIZE_ANNOTATION: "10"}}}
        pool.cluster("PATCH", f"{LEASES}/gpu-health-agent-withdrawn-gpu-{index}", change, MERGE)
    for name in pool.holders[1:]:
        drive(pool.clients[name], healthy(), CONFIG)
    client = KubeClient(pool.cluster, pool.waiting[0], CONFIG, pool.clock)
    drive(client, BAD, CONFIG)
    for _ in range(6):
        pool.clock.now += LOOK_S
        drive(client, BAD, CONFIG)
    assert pool.withdrawn() == {pool.holders[0], pool.waiting[0]}


def test_of_a_hundred_that_wait_one_takes_a_permit_that_comes_free_within_two_minutes() -> None:
    pool = Pool(110)
    for name in pool.waiting:
        drive(pool.clients[name], BAD, CONFIG)
    assert pool.withdrawn() == {*pool.holders}
    back = pool.holders[4]
    drive(pool.clients[back], healthy(), CONFIG)
    for passed_s in pool.minute_by_minute(*pool.waiting, holders=tuple(n for n in pool.holders if n != back)):
        assert passed_s < 130
        if len(pool.withdrawn()) == len(pool.holders):
            break
    assert back not in pool.withdrawn()


@pytest.mark.parametrize("gone", [True, False])
def test_the_permit_of_a_holder_that_is_gone_or_has_lost_its_taint_passes_on_in_a_large_pool(gone: bool) -> None:
    pool = Pool(110)
    dead, some = pool.holders[7], tuple(pool.waiting[:12])
    for name in some:
        drive(pool.clients[name], BAD, CONFIG)
    if gone:
        del pool.cluster._objects["nodes", "", dead]
        pool.cluster.add_node("n110")  # in its place
        pool.names[pool.names.index(dead)] = "n110"
    else:
        change = {"spec": {"taints": None}, "metadata": {"labels": {WITHDRAWN_LABEL: None}}}
        pool.cluster("PATCH", f"/api/v1/nodes/{dead}", change, MERGE)
    for passed_s in pool.minute_by_minute(*some, holders=tuple(n for n in pool.holders if n != dead)):
        assert passed_s < 3600
        if pool.withdrawn() & {*some}:
            return


def test_a_node_that_is_in_service_again_is_noticed_by_one_that_waits_for_its_place() -> None:
    pool = Pool(110)
    for name in pool.holders:
        drive(pool.clients[name], healthy(), CONFIG)
    others, some = [f"n{i}" for i in range(99, 110)], tuple(pool.waiting[:12])
    for name in others:
        pool.cluster("PATCH", f"/api/v1/nodes/{name}", {"metadata": {"labels": {OUT_LABEL: "true"}}}, MERGE)
    for name in some:
        drive(pool.clients[name], BAD, CONFIG)
    assert pool.withdrawn() == set()
    pool.cluster("PATCH", f"/api/v1/nodes/{others[3]}", {"metadata": {"labels": {OUT_LABEL: None}}}, MERGE)
    for passed_s in pool.minute_by_minute(*some, holders=()):
        assert passed_s < 600
        if pool.withdrawn():
            break
    assert len(pool.withdrawn()) == 1


def test_what_was_read_a_while_ago_gives_nobody_a_permit_whatever_it_says() -> None:
    """It knows of a free permit, and meanwhile another node went out of service."""
    pool = Pool(110)
    drive(pool.clients[pool.holders[0]], healthy(), CONFIG)
    one = pool.clients[pool.waiting[0]]
    one.look(closely=True)
    pool.clock.now += LOOK_S
    change = {"metadata": {"labels": {OUT_LABEL: "true"}}}
    pool.cluster("PATCH", f"/api/v1/nodes/{pool.waiting[-1]}", change, MERGE)
    world = one.look(closely=True)
    assert world.aged
    assert any(
        step.kind is PermitKind.WITHDRAWN for step in plan(BAD, world, CONFIG, Local()).steps if hasattr(step, "kind")
    )
    drive(one, BAD, CONFIG)
    assert pool.withdrawn() == {*pool.holders[1:]}


def test_a_person_who_asks_for_the_fleet_sees_the_pool_as_it_is_whatever_holders_say() -> None:
    pool = Pool(110)
    pool.cluster("PATCH", "/api/v1/nodes/n50", {"metadata": {"labels": {OUT_LABEL: "true"}}}, MERGE)
    fleet = read_fleet(pool.cluster, CONFIG.budget)
    assert (fleet.pool.size, {*fleet.pool.out}) == (110, {"n50"})


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 10**9), st.integers(12, 24), st.integers(2, 6))
def test_through_old_lying_and_lost_words_the_budget_holds_and_everyone_is_served(
    seed: int, size: int, limit: int
) -> None:
    """Holders lie about the pool, nodes go out of service by others and come back, and all GPUs get well but one."""
    chance = random.Random(seed)
    fleet = Fleet(size, Config(mode=Mode.TAINT, recurrence=AT_ONCE, budget=Budget(max_withdrawn=limit)), chance)
    well, cured, late_one = healthy(), set[int](), size - 1
    for step in range(size * 40):
        i = chance.randrange(size)
        fleet.turn(i, well if i in cured else BAD)
        leases = [key for key in fleet.cluster._objects if key[0] == "leases"]
        if leases and chance.random() < 0.05:
            words = {"metadata": {"annotations": {POOL_SIZE_ANNOTATION: chance.choice(("1", "5", "99999", "no"))}}}
            fleet.cluster("PATCH", f"{LEASES}/{chance.choice(leases)[2]}", words, MERGE)
        if chance.random() < 0.02 and step < size * 30:
            label = {"metadata": {"labels": {OUT_LABEL: chance.choice(("true", None))}}}
            fleet.cluster("PATCH", f"/api/v1/nodes/n{late_one}", label, MERGE)
        if chance.random() < 0.03:
            cured.add(chance.randrange(late_one))
        fleet.clock.now += chance.choice((0.1, 1.0, 30.0))
        assert len(fleet.withdrawn()) <= limit
    fleet.cluster("PATCH", f"/api/v1/nodes/n{late_one}", {"metadata": {"labels": {OUT_LABEL: None}}}, MERGE)
    for _ in range(200):
        for i in range(size):
            fleet.turn(i, BAD if i == late_one else well)
        fleet.clock.now += LOOK_S
        if late_one in fleet.withdrawn():
            return
    raise AssertionError("the one that is still sick waits for ever")


@pytest.mark.parametrize("trouble", ["its answer is lost", "another is quicker"])
def test_whoever_asked_for_a_permit_and_was_not_told_that_it_has_it_lists_them_all_at_once(trouble: str) -> None:
    pool = Pool(110)
    drive(pool.clients[pool.holders[3]], healthy(), CONFIG)
    once = [trouble]

    def server(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        if method == "PUT" and once:
            if once.pop() == "its answer is lost":
                pool.cluster(method, path, *rest, **more)
                raise UnreachableError("timed out")
            drive(pool.clients[pool.waiting[1]], BAD, CONFIG)
        return pool.cluster(method, path, *rest, **more)

    one = KubeClient(server, pool.waiting[0], CONFIG, pool.clock)
    steps = plan(BAD, one.look(closely=True), CONFIG, Local()).steps
    with pytest.raises((RefusedError, UnreachableError)):
        one.do(steps[0])
    pool.cluster.requests.clear()
    world = one.look(closely=True)
    assert pool.cluster.requests.count(("GET", LEASES)) == 1
    assert bool(world.held(PermitKind.WITHDRAWN)) is (trouble == "its answer is lost")
    taken = [step.kind for step in plan(BAD, world, CONFIG, Local()).steps if isinstance(step, TakePermit)]
    assert all(world.held(kind) for kind in taken), "it is confirmed, and no other is taken"


def test_one_that_waits_alone_behind_a_hundred_permits_takes_one_that_is_given_back_within_four_minutes() -> None:
    pool = Pool(1100)
    alone, back = pool.waiting[0], pool.holders[70]
    drive(pool.clients[alone], BAD, CONFIG)
    drive(pool.clients[back], healthy(), CONFIG)
    began = pool.clock.now
    while alone not in pool.withdrawn():
        pool.clock.now += LOOK_S
        assert pool.clock.now - began < 240
        drive(pool.clients[alone], BAD, CONFIG)
    assert pool.withdrawn() == {*pool.holders, alone} - {back}


def test_a_permit_that_is_only_labelled_as_free_is_nobodys_but_its_holders() -> None:
    pool = Pool(110)
    one = pool.waiting[0]
    drive(pool.clients[one], BAD, CONFIG)
    for index in range(11):
        change = {"metadata": {"labels": {FREE_LABEL: "true"}}}
        pool.cluster("PATCH", f"{LEASES}/gpu-health-agent-withdrawn-gpu-{index}", change, MERGE)
    for _ in range(20):
        pool.clock.now += LOOK_S
        drive(pool.clients[one], BAD, CONFIG)
    assert pool.withdrawn() == {*pool.holders}


def test_free_permits_beside_a_spent_budget_are_asked_for_the_more_seldom_the_more_there_are() -> None:
    """All were given back, and as many nodes are out of service by others."""
    pool = Pool(300)
    for name in pool.holders:
        drive(pool.clients[name], healthy(), CONFIG)
    for name in pool.names[-30:]:
        pool.cluster("PATCH", f"/api/v1/nodes/{name}", {"metadata": {"labels": {OUT_LABEL: "true"}}}, MERGE)
    one = pool.clients[pool.waiting[0]]
    drive(one, BAD, CONFIG)
    pool.asked = pool.bytes = 0
    began = pool.clock.now
    for _ in range(70):
        pool.clock.now += LOOK_S
        drive(one, BAD, CONFIG)
    assert pool.withdrawn() == set()
    minutes = (pool.clock.now - began) / 60
    assert pool.asked / minutes <= 2
    assert pool.bytes / minutes <= 4000
