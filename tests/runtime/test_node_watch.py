"""The watch on our own Node: what can't wait is heard at once, and what can costs no look."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from agent.actions.kube import KubeClient
from agent.config.settings import Config
from agent.model.cluster_client import Annotations, Labels
from agent.model.errors import RefusedError, UnreachableError
from agent.runtime.actor import Actor
from agent.runtime.exchange import Judged
from agent.runtime.node_watch import NodeWatch
from agent.simulation.in_memory_cluster import InMemoryCluster
from tests.actions.test_kube import healthy
from tests.waiting import LATEST_S, until

NODE = "/api/v1/nodes/n1"
WORD = "xid-79@0000:1b:00.0"


def made() -> InMemoryCluster:
    cluster = InMemoryCluster()
    cluster.add_node("n1")
    return cluster


def started(api: Any) -> Actor:
    actor = Actor(Config(), lambda: KubeClient(api, "n1", Config()), False, lambda *_, **__: None)
    actor.exchange.judged = Judged(healthy())
    actor.start()
    return actor


def change(cluster: InMemoryCluster, **metadata: Any) -> None:
    cluster("PATCH", NODE, {"metadata": metadata}, "application/merge-patch+json")


@pytest.mark.parametrize(
    "labels",
    [
        {"nvidia.com/gpu-driver-upgrade-state": "pod-restart-required"},
        {"nvidia.com/mig.config.state": "pending"},
        {"nvidia.com/gpu.deploy.dcgm-exporter": "paused-for-driver-upgrade"},
        {"nvidia.com/gpu.deploy.operator-validator": "paused-for-mig-change"},
    ],
)
def test_nobody_waits_for_an_idle_nodes_next_look_until_its_gpus_are_left(labels: dict[str, str]) -> None:
    cluster = made()
    actor = started(cluster)
    try:
        until(lambda: actor.exchange.acted.world and not actor.exchange.acted.waits)
        change(cluster, labels=labels)
        until(lambda: actor.exchange.acted.keep_off)
        change(cluster, labels=dict.fromkeys(labels))
        until(lambda: not actor.exchange.acted.keep_off)
    finally:
        actor.stop()


def test_a_persons_word_is_heard_at_once() -> None:
    cluster = made()
    actor = started(cluster)
    try:
        until(lambda: actor.exchange.acted.world and not actor.exchange.acted.waits)
        change(cluster, labels={"gpu-health-agent/managed": "false"})
        until(lambda: actor.exchange.acted.waits)
    finally:
        actor.stop()


class Following(KubeClient):
    """It keeps what its watch says."""

    def words(self) -> Iterator[tuple[Labels, Annotations]]:
        self.heard_words: list[Annotations] = []
        for word in super().words():
            self.heard_words.append(word[1])
            yield word

    def said(self, key: str, value: str) -> bool:
        return self.heard_words[-1].get(key) == value


def test_a_change_of_the_node_that_can_wait_costs_no_look() -> None:
    cluster, rang = made(), []
    client = Following(cluster, "n1", Config())
    watch = NodeWatch(lambda: client, lambda: rang.append(1), lambda *_, **__: None)
    watch.start()
    until(lambda: rang)
    for beat in ("1", "2", "3"):
        change(cluster, labels={"team": beat}, annotations={"beat": beat})
        until(partial(client.said, "beat", beat))
    change(cluster, annotations={"gpu-health-agent/dismiss": WORD})
    until(lambda: client.said("gpu-health-agent/dismiss", WORD) and len(rang) > 1)
    watch.stop()
    assert len(rang) == 2
    assert [path for _, path in cluster.requests].count("/api/v1/nodes") == 1


class Ending:
    """A client whose watches end at once, in one way after the other."""

    def __init__(self, *ways: Exception | None) -> None:
        self.ways, self.begun = [*ways], 0

    def words(self) -> Iterator[tuple[dict[str, str], dict[str, str]]]:
        self.begun += 1
        way = self.ways[min(self.begun, len(self.ways)) - 1]
        if way:
            raise way
        yield {}, {}


def test_a_watch_that_ends_is_begun_anew_and_one_that_is_refused_is_told_once() -> None:
    told = threading.Event()
    ending: Any = Ending(None, UnreachableError("reset"), KeyError("object"), RefusedError(403, "no watch on nodes"))
    whys = []

    def hear(_: str, why: str, level: str) -> None:
        assert level == "warning"
        whys.append(why)
        if "no watch" in why:
            told.set()

    watch = NodeWatch(lambda: ending, lambda: None, hear, pause_s=0.001)
    watch.start()
    assert told.wait(LATEST_S)
    watch.stop()
    assert (ending.begun, whys) == (4, ["KeyError('object')", "no watch on nodes"])
