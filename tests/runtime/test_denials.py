"""A webhook that denies a write chooses the code of its answer: the write is named as refused, whichever that is."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from agent.actions.kube import KubeClient
from agent.config.settings import Config, Drain, Mode
from agent.model.errors import UnreachableError
from agent.model.steps import On
from agent.runtime.actor import Actor
from agent.simulation.in_memory_cluster import InMemoryCluster
from tests.actions.test_kube import cluster
from tests.life import Life
from tests.remediation.test_moved import guarded
from tests.runtime.test_actor import broken, tell, tried

CONFIG = Config(mode=Mode.EVICT, drain=Drain(gather_s=0))
WORDS = 'admission webhook "guard.example.com" denied the request: not on my watch'
CODES = (401, 403, 404, 409, 422)
WRITES = {
    "a permit": ("POST", "/leases"),
    "the taint": ("PATCH", "/nodes/n1"),
    "a report": ("PATCH", "/nodes/n1/status"),
}


def denies(made: InMemoryCluster, verb: str, ending: str, code: int, method: str, path: str, *rest: Any) -> Any:
    return (code, {"message": WORDS}) if method == verb and path.endswith(ending) else made(method, path, *rest)


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("write", WRITES)
def test_a_write_that_a_webhook_denies_is_named_as_refused_whatever_code_it_chooses(write: str, code: int) -> None:
    made = cluster()
    api = partial(denies, made, *WRITES[write], code)
    actor = Actor(CONFIG, lambda: KubeClient(api, "n1", CONFIG), False, lambda *_, **__: None)
    tell(actor, broken())
    actor.round()
    assert [wait.on for wait in actor.exchange.acted.waits if WORDS in wait.why] == [On.REFUSED]
    looks = sum(path == "/api/v1/nodes/n1" for method, path in made.requests if method == "GET")
    assert looks < 5, "nobody wrote first: it is not looked again at once, over and over"


@pytest.mark.parametrize("code", CODES)
def test_a_job_that_a_webhook_denies_is_no_job_that_is_there_already(code: int) -> None:
    life = Life(95)
    life.api = partial(denies, life.cluster, "POST", "/jobs", code)
    life.run(100)
    assert any(WORDS in why for why in life.waits)
    assert life.repairs == []


@pytest.mark.parametrize("status", [403, 429, 500, None])  # EventRateLimit answers 429
def test_an_event_that_nobody_takes_holds_up_nothing_else(status: int | None) -> None:
    made = cluster()

    def api(method: str, path: str, *rest: Any, **more: Any) -> Any:
        if method == "POST" and path.endswith("/events"):
            if status is None:
                raise UnreachableError("timed out")
            return status, {"message": "no Event, please"}
        return made(method, path, *rest, **more)

    actor = Actor(CONFIG, lambda: KubeClient(api, "n1", CONFIG), False, lambda *_, **__: None)
    tell(tried(actor), broken())
    pauses = [actor.round() for _ in range(5)]
    assert "research/train" in made.evicted
    assert (actor.exchange.acted.failures, {*actor.exchange.acted.failed}) == (0, {"announce"})
    assert [wait.on for wait in actor.exchange.acted.waits if "Event" in wait.why] == [On.REFUSED]
    assert max(pauses) <= 5.0, "no backing off: the server does well"


def test_an_eviction_that_a_budget_refuses_is_no_done_step_and_is_told_once() -> None:
    made, lines = cluster(), list[tuple[str, str]]()
    client = KubeClient(partial(guarded, made, [True]), "n1", CONFIG)
    actor = Actor(CONFIG, lambda: client, False, lambda event, **facts: lines.append((event, str(facts))))
    tell(tried(actor), broken())
    for _ in range(4):
        actor.round()
    assert ("POST", "/api/v1/namespaces/research/pods/train/eviction") not in made.requests, "it refused"
    assert not [facts for event, facts in lines if event == "done" and "eviction" in facts]
    assert actor.exchange.acted.done.get("evict", 0) == 0
    assert len([facts for event, facts in lines if "may not be evicted yet" in facts]) == 1
