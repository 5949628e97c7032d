"""A fleet that waits lets the API server alone; what acts never waits for that."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from agent.actions.api import JSON, TABLE
from agent.actions.kube import KubeClient
from agent.config.settings import Budget, Config, Mode
from agent.model.fault import Verdict
from agent.model.names import (
    HARD_TAINT,
    PERMIT_KIND_LABEL,
    POOL_LABEL,
    POOL_SIZE_ANNOTATION,
    SLOT_LEASE,
    WITHDRAWN_LABEL,
)
from agent.model.steps import On, Wait
from agent.model.world import World
from agent.runtime.actor import Actor
from agent.runtime.cycle import Cycle, Turn, turn
from agent.runtime.exchange import Judged
from agent.runtime.patience import pause_s
from agent.simulation.in_memory_cluster import InMemoryCluster
from tests.actions.test_kube import drive, fatal, healthy
from tests.actions.test_pool import LEASES
from tests.observe import START
from tests.runtime.test_actor import CONFIG, broken, made, tell, tried

TAINT = Config(mode=Mode.TAINT, budget=Budget(max_withdrawn=1))


@dataclass
class Agent:
    """One of a pool, by its own clock."""

    cluster: InMemoryCluster
    name: str
    now: float = 5000.0
    verdict: Verdict = field(default_factory=fatal)
    turns: list[Turn] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.client = KubeClient(self.cluster, self.name, TAINT, lambda: self.now, wall=lambda: START + self.now)
        self.cycle = Cycle(TAINT, self.now - 1000)

    def round(self) -> Turn:
        while True:
            judged = Judged(replace(self.verdict, at=START + self.now))
            one = turn(self.cycle, judged, self.client, lambda _: None, lambda: self.now, lambda: START + self.now)
            self.cycle = one.cycle
            self.turns.append(one)
            if not one.again:
                return one

    @property
    def reported(self) -> bool:
        return bool(self.cluster.read("nodes", self.name)["status"]["conditions"])

    @property
    def tainted(self) -> bool:
        return any(t["key"] == HARD_TAINT for t in self.cluster.read("nodes", self.name)["spec"].get("taints") or ())


def hold(cluster: InMemoryCluster, index: int, node: str, size: int) -> None:
    """This node of a pool so large holds the withdrawn permit of this number."""
    labels = {POOL_LABEL: TAINT.budget.pool, PERMIT_KIND_LABEL: "withdrawn"}
    name = SLOT_LEASE.format(kind="withdrawn", pool=TAINT.budget.pool, index=index)
    metadata = {"name": name, "labels": labels, "annotations": {POOL_SIZE_ANNOTATION: str(size)}}
    cluster("POST", LEASES, {"metadata": metadata, "spec": {"holderIdentity": f"{node}/{index}"}})


def test_a_large_pool_that_waits_is_told_of_bit_by_bit_and_whoever_gets_the_permit_acts_at_once() -> None:
    cluster = InMemoryCluster()
    for i in range(600):
        cluster.add_node(f"n{i}")
    first, *others = (Agent(cluster, f"n{i}") for i in range(12))
    assert not first.round().put_off_s
    assert first.tainted
    assert first.reported
    for one in others:
        last = one.round()
        assert 0 < last.put_off_s < 20, "600 nodes, thirty a second"
        assert any("the Node gets its report in its turn" in wait.why for wait in last.waits)
        assert not one.reported
    told = []
    for _ in range(20):
        for one in others:
            one.now += 1
            one.round()
        told.append(sum(one.reported for one in others))
    assert told[-1] == len(others)
    assert len({*told}) > 4


def test_a_report_that_was_put_off_for_a_moment_is_written_without_another_read() -> None:
    cluster = InMemoryCluster()
    for i in range(300):
        cluster.add_node(f"n{i}")
    one = Agent(cluster, "n7", verdict=healthy())
    for i in range(30):
        hold(cluster, i, f"n{100 + i}", 300)
    one.round()
    one.now, one.verdict = one.now + 60, fatal()
    cluster.requests.clear()
    later_s = one.round().put_off_s
    assert 0 < later_s < 10
    assert [method for method, _ in cluster.requests] == ["GET"] * 3, cluster.requests
    cluster.requests.clear()
    one.now += later_s + 0.1
    one.client.heard(cluster.read("nodes", "n7")["metadata"]["resourceVersion"])
    one.round()
    assert one.reported
    assert {method for method, _ in cluster.requests} == {"PATCH", "POST"}


def test_a_permit_that_a_waiting_node_knows_to_be_free_is_read_of_anew_and_taken_without_a_refusal() -> None:
    cluster = InMemoryCluster()
    for i in range(600):
        cluster.add_node(f"n{i}")
    first, other = Agent(cluster, "n0"), Agent(cluster, "n1")
    for one in (first, other):
        one.round()
    drive(first.client, healthy(), TAINT)
    for _ in range(3):
        other.now += 52
        cluster.requests.clear()
        other.round()
        if other.tainted:
            break
    assert other.tainted
    assert not any(one.failed for one in other.turns)
    assert cluster.requests.count(("GET", "/api/v1/nodes")) == 2, "the pool was read just before"


def test_a_roll_out_over_a_healthy_fleet_asks_for_nothing_that_grows_but_two_tables_of_the_permits() -> None:
    """At its start each agent looks whether it holds a permit, and again for one that an earlier life asked for."""
    cluster, asked, size = made(), list[tuple[str, str, str]](), 0
    for i in range(1000):
        hold(cluster, i, f"other-{i}", 10_000)
    one = Agent(cluster, "n1", verdict=healthy())

    def counted(
        method: str, path: str, body: Any = None, content_type: str = JSON, accept: str = JSON
    ) -> tuple[int, Any]:
        nonlocal size
        asked.append((method, path, accept))
        answer = cluster(method, path, body, content_type, accept)
        size += len(json.dumps(answer[1]))
        return answer

    one.client = KubeClient(counted, "n1", TAINT, lambda: one.now, wall=lambda: START + one.now)
    one.round()
    assert one.client.lacks(lambda: True) == ()
    for _ in range(10):
        one.now += 60
        one.round()
    lists = [
        (path, accept)
        for method, path, accept in asked
        if method == "GET" and path.partition("?")[0].endswith(("/leases", "/nodes", "/pods")) and "limit=1" not in path
    ]
    tables = [path for path, accept in lists if path.startswith(LEASES) and accept == TABLE]
    assert len(tables) == 2
    assert all("spec.nodeName%3Dn1" in path for path, _ in lists if path not in tables), "its own pods"
    assert size < 300_000, "as lists these permits are 0.7 MB"
    asked.clear()
    for _ in range(30):
        one.now += 60
        one.client.heard(cluster.read("nodes", "n1")["metadata"]["resourceVersion"])
        one.round()
    assert len(asked) <= 30
    assert {method for method, _, _ in asked} == {"GET"}


def test_a_withdrawn_node_that_waits_for_a_person_is_looked_at_once_a_minute_and_for_one_that_drains_sooner() -> None:
    cluster = made()
    actor = tried(Actor(CONFIG, lambda: KubeClient(cluster, "n1", CONFIG), False, lambda *_, **__: None))
    tell(actor, broken())
    for _ in range(3):
        pause = actor.round()
    assert cluster.read("nodes", "n1")["metadata"]["labels"][WITHDRAWN_LABEL] == "true"
    assert 45 <= pause <= 60
    cluster.requests.clear()
    actor.round()
    assert len(cluster.requests) <= 5, cluster.requests


@pytest.mark.parametrize(("size", "pause"), [(3, 5), (300, 10), (10_000, 60)])
def test_whoever_waits_to_drain_looks_the_sooner_the_smaller_its_pool(size: int, pause: float) -> None:
    world, waits = World("n1", "uid", pool_size=size), [Wait("the budget is spent", On.PERMIT)]
    assert pause_s(world, True, waits) == pause
    assert pause_s(world, False, waits) == 60
    assert pause_s(world, True, ()) == 60


def test_a_node_that_turns_sick_when_all_permits_are_held_asks_three_times_and_then_only_writes() -> None:
    cluster = made()
    cluster.add_node("n2")
    first, one = Agent(cluster, "n1"), Agent(cluster, "n2", verdict=healthy())
    first.round()
    for _ in range(3):
        one.round()
        one.now += 60
        one.client.heard(cluster.read("nodes", "n2")["metadata"]["resourceVersion"])
    one.verdict = fatal()
    cluster.requests.clear()
    one.round()
    assert one.reported
    assert not one.tainted
    assert len([path for method, path in cluster.requests if method == "GET"]) <= 3, cluster.requests
    assert [method for method, _ in cluster.requests if method != "GET"] == ["PATCH", "POST", "POST"], "and Events"
