"""Pods that the kubelet refused: by distinct workloads, within a window, and not while a kubelet begins anew."""

from __future__ import annotations

from typing import Any

import pytest

from agent.actions import admissions
from agent.actions.kube import KubeClient
from agent.config.settings import Config
from agent.simulation.in_memory_cluster import InMemoryCluster
from tests.actions.test_kube import MERGE, cluster
from tests.actions.test_permits import Clock

A_MINUTE, AN_HOUR = 60, 3600


class Node:
    """A node whose kubelet refuses pods, and the client that looks at it once a minute."""

    def __init__(self) -> None:
        self.made: InMemoryCluster = cluster()
        self.clock, self.number = Clock(), 0
        self.client = KubeClient(self.made, "n1", Config(), self.clock)
        self.ready("2026-01-01T00:00:00Z")
        self.passes(A_MINUTE)

    def ready(self, since: str) -> None:
        told = {"type": "Ready", "status": "True", "lastTransitionTime": since}
        self.made("PATCH", "/api/v1/nodes/n1/status", {"status": {"conditions": [told]}}, MERGE)

    def refuses(
        self, workload: str, reason: str = "UnexpectedAdmissionError", node: str = "n1", bare: bool = False
    ) -> None:
        self.number += 1
        name = f"{workload}-{self.number}"
        self.made.add_pod("research", name, node, owner="Job")
        pod = self.made._objects["pods", "research", name]
        pod["metadata"]["ownerReferences"][0]["name"] = workload
        if bare:
            pod["metadata"]["ownerReferences"] = []
        pod["status"] = {"phase": "Failed", "reason": reason}

    def has_refused(self) -> None:
        """For so long that no beginning of its kubelet explains what it refuses from here on."""
        for _ in range(2):
            self.refuses("z")
            self.passes(16 * A_MINUTE)

    def passes(self, seconds: int) -> tuple[str, ...]:
        for _ in range(seconds // A_MINUTE):
            self.clock.now += A_MINUTE
            self.client.look(closely=False)
        return self.client.look(closely=False).offer.refused


def test_a_kubelet_that_goes_on_refusing_is_told_by_workload_for_an_hour() -> None:
    node = Node()
    node.refuses("a")
    assert node.passes(16 * A_MINUTE) == (), "it may have begun anew"
    node.refuses("a")
    assert node.passes(16 * A_MINUTE) == (), "and again"
    for workload in ("b", "b", "a"):
        node.refuses(workload)
    node.refuses("c", node="n2")
    node.refuses("d", reason="Evicted")
    assert node.passes(5 * A_MINUTE) == ("research/Job/a", "research/Job/b")
    assert node.passes(AN_HOUR) == ()


@pytest.mark.parametrize("again", [True, False])
def test_what_is_refused_within_ten_minutes_of_a_kubelets_begin_counts_for_nothing(again: bool) -> None:
    node = Node()
    node.has_refused()
    if again:
        node.ready("2026-01-01T00:40:00Z")
    node.refuses("b")
    assert node.passes(5 * A_MINUTE) == (() if again else ("research/Job/b",))


@pytest.mark.parametrize("minutes", [1, 5, 9, 11, 30, 59])
def test_a_kubelets_second_quick_beginning_within_the_hour_counts_for_nothing(minutes: int) -> None:
    node = Node()
    for workload in ("a", "b", "c"):
        node.refuses(workload)
    node.passes(minutes * A_MINUTE)
    for number in range(2):
        for workload in ("a", "b", "c"):
            node.refuses(workload)
        assert node.passes((1 + number * 40) * A_MINUTE) == ()


def test_what_was_refused_before_the_agents_start_counts_for_nothing() -> None:
    node = Node()
    node.refuses("a")
    node.client = KubeClient(node.made, "n1", Config(), node.clock)
    assert node.passes(AN_HOUR) == ()


def test_a_node_that_refuses_nobody_is_asked_each_five_minutes_and_one_that_may_not_ask_goes_on() -> None:
    node = Node()
    node.made.requests.clear()
    node.passes(AN_HOUR)
    assert node.made.requests.count(("GET", "/api/v1/pods")) == AN_HOUR // 300
    client = KubeClient(
        lambda method, path, *more: (403, {}) if "pods?" in path else node.made(method, path, *more), "n1", Config()
    )
    assert client.look(closely=False).offer.refused == ()


def test_more_refused_pods_than_can_be_read_leave_what_was_told_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admissions, "_MOST", 4)
    node = Node()
    node.has_refused()
    for workload in ("b", "b"):
        node.refuses(workload)
    assert node.passes(5 * A_MINUTE) == ("research/Job/b",)
    for _ in range(5):
        node.refuses("c")
    assert node.passes(2 * AN_HOUR) == ("research/Job/b",)


@pytest.mark.parametrize("bare", [False, True])
def test_one_persons_series_by_the_hundred_is_one_workload(bare: bool) -> None:
    node = Node()
    node.has_refused()
    for number in range(100):
        node.refuses(f"sweep-{number}", bare=bare)
    assert node.passes(5 * A_MINUTE) == (f"research/{'Pod' if bare else 'Job'}/sweep",)


def test_bare_pods_that_the_api_server_named_after_one_prefix_are_one_workload() -> None:
    node = Node()
    node.has_refused()
    for end in ("x7k2p", "b9qrt", "zz4mn"):
        node.refuses(f"sweep-{end}", bare=True)
        node.made._objects["pods", "research", f"sweep-{end}-{node.number}"]["metadata"]["generateName"] = "sweep-"
    assert node.passes(5 * A_MINUTE) == ("research/Pod/sweep",)


def test_a_server_that_lags_behind_another_makes_no_old_refusal_a_new_one() -> None:
    node = Node()
    for workload in ("a", "b", "c"):
        node.refuses(workload)
    node.passes(AN_HOUR + 30 * A_MINUTE)
    for _ in range(2):
        node.refuses("d")
        node.passes(16 * A_MINUTE)
    there = {key: one for key, one in node.made._objects.items() if key[0] == "pods"}
    for key in there:
        del node.made._objects[key]
    node.passes(5 * A_MINUTE)
    node.made._objects.update(there)
    assert node.passes(5 * A_MINUTE) == ()


def test_what_was_refused_while_nobody_could_read_it_counts_for_nothing() -> None:
    node, refuses = Node(), True

    def api(method: str, path: str, *more: Any, **rest: Any) -> tuple[int, Any]:
        return (429, {}) if refuses and "phase%3DFailed" in path else node.made(method, path, *more, **rest)

    node.client = KubeClient(api, "n1", Config(), node.clock)
    refuses = False
    node.passes(5 * A_MINUTE)
    node.has_refused()
    refuses = True
    node.ready("2026-01-01T00:20:00Z")
    node.passes(A_MINUTE)
    for workload in ("a", "b", "c"):
        node.refuses(workload)
    node.passes(16 * A_MINUTE)
    refuses = False
    assert node.passes(5 * A_MINUTE) == ()
    node.refuses("d")
    assert node.passes(5 * A_MINUTE) == ("research/Job/d",), "and then it goes on"


def test_a_pod_that_can_not_be_read_hides_no_other_one() -> None:
    node = Node()
    node.has_refused()
    for workload in ("a", "b"):
        node.refuses(workload)
    ill = next(one for key, one in node.made._objects.items() if key[2].startswith("a-"))
    ill["metadata"]["ownerReferences"] = [{"controller": True}]
    assert node.passes(5 * A_MINUTE) == ("research/Job/b",)
