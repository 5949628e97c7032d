"""The diagnosis before a node's return, as the act loop's hands run it."""

from __future__ import annotations

import json
import queue
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from agent.actions.kube import KubeClient
from agent.config.settings import Config
from agent.model.cluster_client import ClusterClient
from agent.model.errors import RefusedError, UndiagnosedError
from agent.model.fault import Status, Verdict
from agent.model.remedy import Remedy
from agent.model.steps import Diagnose
from agent.model.world import Diagnosed
from agent.recording.recording import _world, plain_world
from agent.remediation.records import Kind, Records, Stage, Validation
from agent.remediation.stored import dump
from agent.runtime.diag_runner import DiagRunner
from agent.simulation.in_memory_cluster import InMemoryCluster
from agent.sources.dcgm.diag_process import Progress
from tests.scarce import no_threads

STEP = Diagnose("gpu-health-diagnosis-1-1", 2, ("GPU-a",))
CHECK = Validation(Kind.DIAGNOSIS, "gpu-health-diagnosis-1", ("GPU-a",), "boot")
PASSED = {"passed": True, "results": {}, "errors": []}
FAILED = {"passed": False, "results": {"0000:1b:00.0": {"memory": "fail"}}, "errors": []}


class Engine:
    """Answers what it is given, and until then asks whether anybody still waits."""

    def __init__(self) -> None:
        self.answers: queue.Queue[Any] = queue.Queue()
        self.asked: list[tuple[int, Sequence[str]]] = []

    def __call__(self, level: int, uuids: Sequence[str], progress: Progress) -> dict[str, Any]:
        self.asked.append((level, uuids))
        while self.answers.empty():
            progress(1.0)
            time.sleep(0.005)
        answer = self.answers.get()
        if isinstance(answer, Exception):
            raise answer
        return dict(answer)


class Node:
    """Bears this check."""

    def __init__(self, engine: Engine) -> None:
        self._cluster = InMemoryCluster()
        self._cluster.add_node("n1")
        self.client: ClusterClient = DiagRunner(KubeClient(self._cluster, "n1", Config()), engine)
        self.bears(CHECK)

    def bears(self, check: Validation | None = None) -> None:
        stored = dump(Verdict(0, Status.HEALTHY, Remedy.NONE), None, 0, Records(validation=check))
        body = {"metadata": {"annotations": {"gpu-health-agent/faults": stored}}}
        self._cluster("PATCH", "/api/v1/nodes/n1", body, "application/merge-patch+json")

    def seen(self) -> Diagnosed | None:
        return self.client.look(closely=False).diagnosed

    def until(self, true: Callable[[Diagnosed], object]) -> Diagnosed:
        due = time.monotonic() + 20
        while not ((seen := self.seen()) and true(seen)):
            assert time.monotonic() < due, seen
            time.sleep(0.005)
        return seen


@pytest.mark.parametrize(
    ("answer", "state", "said"),
    [
        (PASSED, "passed", ""),
        (FAILED, "failed", "memory failed on 0000:1b:00.0"),
        ({**FAILED, "passed": 1}, "failed", "memory failed on 0000:1b:00.0"),
        (UndiagnosedError("no DCGM engine answers"), "undone", "no DCGM engine answers"),
        (KeyError("passed"), "undone", "unexpected KeyError; please report it"),
    ],
)
def test_how_it_ended_is_seen_at_the_next_look(answer: object, state: str, said: str) -> None:
    engine = Engine()
    node = Node(engine)
    assert node.seen() is None
    node.client.do(STEP)
    assert node.seen() == Diagnosed(STEP.name, "active")
    with pytest.raises(RefusedError, match="has not ended yet"):
        node.client.do(STEP)
    engine.answers.put(answer)
    ended = node.until(lambda seen: seen.state != "active")
    assert replace(ended, ended_s=0) == Diagnosed(STEP.name, state, said)
    assert engine.asked == [(2, ("GPU-a",))]


@pytest.mark.parametrize("now", [None, replace(CHECK, number=2), replace(CHECK, stage=Stage.FAILED)])
def test_one_that_the_node_no_longer_waits_for_is_ended(now: Validation | None) -> None:
    node = Node(Engine())
    node.client.do(STEP)
    node.bears(now)
    assert node.until(lambda seen: seen.state == "undone").said == "nobody waits for it any more"


def test_one_for_which_there_is_no_thread_is_told_and_begun_later() -> None:
    engine = Engine()
    node = Node(engine)
    with no_threads(DiagRunner), pytest.raises(RefusedError, match="there is no thread for it"):
        node.client.do(STEP)
    engine.answers.put(PASSED)
    node.client.do(STEP)
    assert node.until(lambda seen: seen.state != "active").state == "passed"


def test_hands_without_sources_refuse_it() -> None:
    cluster = InMemoryCluster()
    cluster.add_node("n1")
    with pytest.raises(RefusedError, match="no sources"):
        KubeClient(cluster, "n1", Config()).do(STEP)


def test_a_recording_keeps_it() -> None:
    node = Node(Engine())
    node.client.do(STEP)
    world = node.client.look(closely=False)
    assert _world(json.loads(json.dumps(plain_world(world), default=sorted))).diagnosed == Diagnosed(
        STEP.name, "active"
    )
    node.bears()
