"""A node on which nothing can be done, for as long as somebody wants or undoes it, costs the API server little."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from agent.actions.api import Api
from agent.actions.kube import KubeClient
from agent.model.names import FAULTS_ANNOTATION, MANAGED_LABEL, WITHDRAWN_LABEL
from agent.model.steps import On, Wait
from agent.runtime.actor import Actor
from tests.observe import Judge, alive, reading
from tests.runtime.test_actor import CONFIG, broken, made, tell, tried

WRITTEN = {"version": 1, "at": 0, "boot_id": "", "kernel_seq": None, "faults": []}


def told_once(api: Api) -> tuple[Actor, Wait]:
    """An agent of a broken node behind it, and its wait for whoever undoes what it writes, after three rounds."""
    told = list[str]()

    def log(event: str, why: str = "", **_: Any) -> None:
        told.append(f"{event}: {why}")

    actor = tried(Actor(CONFIG, lambda: KubeClient(api, "n1", CONFIG), False, log))
    tell(actor, broken())
    pauses = [actor.round() for _ in range(3)]
    (unrest,) = (wait for wait in actor.exchange.acted.waits if "somebody undoes it" in wait.why)
    assert told.count(f"waiting: {unrest.why}") == 1
    assert min(pauses) >= 15.0
    return actor, unrest


@pytest.mark.parametrize("undone", [FAULTS_ANNOTATION, WITHDRAWN_LABEL])
def test_what_a_webhook_takes_off_again_is_told_once_and_tried_seldom(undone: str) -> None:
    cluster, undoes = made(), True

    def strips(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        answer = cluster(method, path, *rest, **more)
        if method == "PATCH" and undoes:
            node = cluster.read("nodes", "n1")
            for part in ("labels", "annotations"):
                node["metadata"].get(part, {}).pop(undone, None)
            return 200, cluster._store("nodes", "", node)
        return answer

    actor, unrest = told_once(strips)
    assert unrest.on is On.REFUSED
    assert "(report)" in unrest.why
    undoes = False
    actor.round()
    assert unrest not in actor.exchange.acted.waits


def test_an_endless_conflict_is_told_in_the_api_servers_own_words() -> None:
    cluster = made()
    why = 'Operation cannot be fulfilled on nodes "n1": its webhook answers 409 to everybody'

    def conflicts(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        return (409, {"message": why}) if method == "PATCH" else cluster(method, path, *rest, **more)

    _, unrest = told_once(conflicts)
    assert unrest.why.endswith(f", or writes first each time ({why})")


STOPPED = {
    "opted out": {"labels": {MANAGED_LABEL: "false"}},
    "malformed": {"annotations": {FAULTS_ANNOTATION: "{}"}},
    "newer": {"annotations": {FAULTS_ANNOTATION: '{"version": 2}'}},
    "another agent": {"annotations": {FAULTS_ANNOTATION: json.dumps({**WRITTEN, "writer": [9, "by-hand-other"]})}},
}


@pytest.mark.parametrize("why", STOPPED)
def test_a_healthy_node_on_which_the_agent_is_stopped_is_looked_at_seldom_and_says_why(why: str) -> None:
    cluster, judge = made(), Judge()
    judge.now = time.monotonic() - 60
    actor = tried(Actor(CONFIG, lambda: KubeClient(cluster, "n1", CONFIG), False, lambda *_, **__: None, life="own"))
    tell(actor, judge.after(0, alive(), reading()))
    actor.round()
    cluster("PATCH", "/api/v1/nodes/n1", {"metadata": STOPPED[why]}, "application/merge-patch+json")
    pauses = [actor.round() for _ in range(3)]
    assert [wait.on for wait in actor.exchange.acted.waits] == [On.STOPPED]
    assert min(pauses) >= 15.0
