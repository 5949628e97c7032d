"""A drain's rounds on a made-up clock: one pod's trouble is its own, and a person's word is heard between two pods."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pytest

from agent.actions.kube import KubeClient
from agent.config.settings import Config, Drain, Mode
from agent.model.errors import UnreachableError
from agent.model.fault import Verdict
from agent.model.steps import On, Wait
from agent.model.world import PermitKind
from agent.runtime.actor import Actor
from agent.runtime.cycle import Cycle, Turn, turn
from agent.runtime.exchange import Judged
from agent.simulation.in_memory_cluster import InMemoryCluster
from tests.actions.test_kube import MERGE, fatal, healthy
from tests.observe import START
from tests.runtime.test_actor import broken, tell

CONFIG = Config(mode=Mode.EVICT, drain=Drain(gather_s=0))
FAULT = "xid-79@0000:1b:00.0"
HOOK = 'Internal error occurred: failed calling webhook "drain.a.example": failed to call webhook: '
Answer = Callable[[], tuple[int, Any]]


def silence() -> tuple[int, Any]:
    raise UnreachableError("https://10.96.0.1:443 does not answer: Read timed out. (read timeout=10.0)")


@dataclass
class Node:
    """n1, whose GPU is bad, with its agent. An eviction takes ``eviction_s``, or in namespace a what ``hook`` says."""

    cluster: InMemoryCluster = field(default_factory=InMemoryCluster)
    eviction_s: float = 0.02
    hook: tuple[float, Answer] | None = None  # seconds and answer
    verdict: Verdict = field(default_factory=fatal)
    now: float = 5000.0
    asked: list[tuple[float, str]] = field(default_factory=list)  # evictions: when, of whom
    reads: Counter[str] = field(default_factory=Counter)
    heard: Callable[[str], object] = lambda _: None  # what happens once this pod was evicted

    def __post_init__(self) -> None:
        self.cluster.add_node("n1")
        self.client = KubeClient(self.api, "n1", CONFIG, lambda: self.now, wall=lambda: START + self.now)
        self.cycle = Cycle(CONFIG, self.now - 1000)

    def api(self, method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        if not path.endswith("/eviction"):
            if method == "GET":
                self.reads[path.partition("?")[0].rpartition("/")[2]] += 1
            return self.cluster(method, path, *rest, **more)
        namespace, pod = path.split("/")[4], path.split("/")[-2]
        self.asked.append((self.now, f"{namespace}/{pod}"))
        if self.hook and namespace == "a":
            self.now += self.hook[0]
            return self.hook[1]()
        self.now += self.eviction_s
        answer = self.cluster(method, path, *rest, **more)
        self.heard(pod)
        return answer

    def pods(self, number: int, *namespaces: str) -> None:
        for namespace in namespaces:
            for index in range(number):
                self.cluster.add_pod(namespace, f"{namespace}-{index:02}", "n1", owner="Job")

    def turn(self) -> Turn:
        judged, wall = Judged(self.verdict), START + self.now
        judged = replace(judged, verdict=replace(self.verdict, at=wall))
        one = turn(self.cycle, judged, self.client, lambda _: None, lambda: self.now, lambda: START + self.now)
        self.cycle = one.cycle
        return one

    def round(self) -> list[Turn]:
        """As the act loop does: until nothing is left to do at once."""
        turns = [self.turn()]
        while turns[-1].again or turns[-1].cut:
            assert len(turns) < 200
            turns.append(self.turn())
        return turns

    def gone(self, namespace: str) -> int:
        return sum(one.startswith(f"{namespace}/") for one in self.cluster.evicted)


TROUBLES: dict[str, tuple[float, Answer]] = {
    "refuses": (0.02, lambda: (403, {"message": "admission webhook denied the request: no"})),
    "fails": (0.02, lambda: (500, {"message": f"{HOOK}EOF"})),
    "fails after 5 s": (5.0, lambda: (500, {"message": f"{HOOK}context deadline exceeded"})),
    "fails after 10 s": (10.0, lambda: (504, {"message": "Timeout: request did not complete within 10s"})),
    "answers nobody": (10.0, silence),
    "asks to come later": (0.02, lambda: (429, {"message": "not now"})),
    "two budgets": (0.02, lambda: (500, {"message": "This pod has more than one PodDisruptionBudget."})),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_pod_that_can_not_be_evicted_delays_no_other_of_its_node_by_more_than_its_one_request(trouble: str) -> None:
    node = Node(hook=TROUBLES[trouble])
    node.pods(5, "a", "b", "c")  # those of a would go first
    turns, began = node.round(), node.now
    assert (node.gone("b"), node.gone("c"), node.gone("a")) == (5, 5, 0)
    others = [at for at, pod in node.asked if not pod.startswith("a/")]
    assert max(others) - node.asked[0][0] <= TROUBLES[trouble][0] + 1.5
    assert not any(one.trouble for one in turns), "no backing off: the server does well"
    until = began + 300
    while node.now < until:
        node.now += 5
        turns = node.round()
        assert not any(one.trouble for one in turns)
    named = [wait for wait in turns[-1].waits if wait.on is On.EVICTION]
    assert [wait.why.split()[1] for wait in named] == [f"a/a-0{n}" for n in range(5)], "each is named, once"
    tries = Counter(pod for _, pod in node.asked)
    assert all(tries[f"a/a-0{n}"] >= 4 for n in range(5)), "each is asked again, in its turn"


def test_while_evictions_hang_the_act_loop_comes_round_after_each_of_them() -> None:
    node = Node(hook=TROUBLES["answers nobody"])
    node.pods(30, "a")
    node.round()
    for _ in range(20):
        before = node.now
        node.round()
        assert node.now - before <= 20, "one request or, where its permit was confirmed first, two"
        node.now += 5


def test_a_pod_that_can_not_be_evicted_opens_no_circuit_and_is_counted_and_named_at_once() -> None:
    node = Node(hook=(0.0, TROUBLES["fails"][1]))
    node.pods(2, "a", "b")
    actor = Actor(CONFIG, partial(KubeClient, node.api, "n1", CONFIG), False, lambda *_, **__: None)
    tell(actor, broken())
    actor.round()
    acted = actor.exchange.acted
    assert (acted.failures, {*acted.failed}) == (0, {"evict"})
    assert [wait.on for wait in acted.waits] == [On.EVICTION, On.EVICTION]
    assert all(f"a/a-0{n}" in wait.why and f"{HOOK}EOF" in wait.why for n, wait in enumerate(acted.waits))
    node = Node(hook=TROUBLES["fails"])
    node.pods(2, "a")
    first = next(one for one in node.round() if one.failed)
    assert [wait.on for wait in first.waits if wait.why.startswith("could not ")] == [On.EVICTION] * 2, "and at once"


def test_a_server_that_answers_nothing_at_all_is_told_from_a_pod_by_the_next_look() -> None:
    node = Node()
    node.pods(3, "a", "b")
    down = [False]

    def server(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        down[0] = down[0] or path.endswith("/eviction")
        return silence() if down[0] else node.api(method, path, *rest, **more)

    actor = Actor(CONFIG, partial(KubeClient, server, "n1", CONFIG), False, lambda *_, **__: None)
    tell(actor, broken())
    actor.round()
    assert actor.exchange.acted.failures == 1
    assert actor.exchange.acted.failed == {"evict": 1, "look": 1}, "the others were not asked in vain"


def test_an_eviction_without_an_answer_may_still_arrive_and_the_node_does_not_return_meanwhile() -> None:
    node = Node(hook=TROUBLES["answers nobody"])
    node.pods(1, "a")
    node.round()
    world = node.client.look(closely=True)
    assert world.held(PermitKind.DRAINING)
    assert world.pending
    node.verdict = healthy()
    node.now += 200
    node.round()
    assert node.cluster.read("nodes", "n1")["spec"]["taints"]
    node.now += 200
    node.round()
    assert not node.cluster.read("nodes", "n1")["spec"].get("taints")


def test_a_webhook_that_could_not_be_called_has_let_nothing_through() -> None:
    node = Node(hook=TROUBLES["fails after 5 s"])
    node.pods(1, "a")
    node.round()
    assert not node.client.look(closely=True).pending


def test_a_namesake_that_follows_a_refused_pod_was_refused_nothing() -> None:
    node = Node(hook=TROUBLES["refuses"])
    node.pods(1, "a")
    node.round()
    assert node.client.look(closely=True).denied.keys() == {"a/a-00"}
    del node.cluster._objects["pods", "a", "a-00"]
    node.pods(1, "a")
    world = node.client.look(closely=True)
    assert ({**world.denied}, {**world.blocked}, tuple(world.refused)) == ({}, {}, ())


def test_who_was_refused_longest_ago_is_asked_first_once_nobody_else_is_left() -> None:
    node = Node(hook=TROUBLES["fails after 5 s"])
    node.pods(3, "a")
    for _ in range(4):
        node.round()
        node.now += 5
    assert [pod for _, pod in node.asked] == [f"a/a-0{n}" for n in (0, 1, 2, 0, 1, 2)]


def words(node: Node) -> dict[str, Callable[[], object]]:
    pause = {"metadata": {"name": "gpu-health-agent-pause"}, "data": {"paused": "true"}}
    own = partial(node.cluster, "PATCH", "/api/v1/nodes/n1", content_type=MERGE)
    dismissal = {"metadata": {"annotations": {"gpu-health-agent/dismiss": FAULT}}}
    return {
        "pause": lambda: node.cluster._store("configmaps", "gpu-health-agent", pause),
        "opt-out": lambda: own(body={"metadata": {"labels": {"gpu-health-agent/managed": "false"}}}),
        "dismissal": lambda: own(body=dismissal),
        "cure": lambda: setattr(node, "verdict", healthy()),
    }


@pytest.mark.parametrize("word", ["pause", "opt-out", "dismissal", "cure"])
def test_a_word_stops_a_running_drain_before_the_second_pod_after_it(word: str) -> None:
    node = Node(eviction_s=0.9)
    node.pods(60, "b")
    say = words(node)[word]
    node.heard = lambda pod: say() if pod == "b-01" else None
    for _ in range(3):
        turns = node.round()
        node.now += 5
    assert len(node.cluster.evicted) <= 3
    assert word == "cure" or any(isinstance(wait, Wait) for wait in turns[-1].waits)


def test_a_dismissal_that_is_judged_returns_the_node_and_one_of_before_stops_nothing() -> None:
    node = Node(eviction_s=0.9)
    node.pods(4, "b")
    words(node)["dismissal"]()
    assert [wait.why for wait in node.round()[-1].waits] == [
        f"a person dismissed {FAULT}: nothing is done before that is judged"
    ]
    assert not node.cluster.read("nodes", "n1")["spec"].get("taints")
    node.verdict = replace(node.verdict, dismissed=frozenset({FAULT}))  # it came again, and the word is an old one
    node.round()
    assert node.gone("b") == 4


def test_a_drain_of_sixty_pods_costs_a_look_a_second() -> None:
    """Five reads, of which two are of the pool and serve for a while.

    Once it asks which pods the kubelet refused, and, as there was no permit yet, how many nodes there are.
    """
    quick, slow = Node(), Node(eviction_s=0.9)
    for node in (quick, slow):
        node.pods(60, "b")
        node.round()
        assert node.gone("b") == 60
    assert quick.now - 5000 < 2
    assert slow.now - 5000 < 60
    assert quick.reads == {"n1": 3, "leases": 3, "nodes": 3, "gpu-health-agent-pause": 3, "pods": 3}
    assert slow.reads == {"n1": 31, "leases": 31, "nodes": 7, "gpu-health-agent-pause": 31, "pods": 31}
