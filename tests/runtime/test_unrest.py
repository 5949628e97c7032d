"""What somebody undoes as soon as it is written is told, and not written over and over."""

from __future__ import annotations

from typing import Any

import pytest

from agent.actions.kube import KubeClient
from agent.model.names import FAULTS_ANNOTATION, WITHDRAWN_LABEL
from agent.model.steps import On
from agent.runtime.actor import Actor
from tests.runtime.test_actor import CONFIG, broken, made, tell, tried


@pytest.mark.parametrize("undone", [FAULTS_ANNOTATION, WITHDRAWN_LABEL])
def test_what_a_webhook_takes_off_again_is_told_once_and_tried_seldom(undone: str) -> None:
    cluster, told = made(), list[str]()
    undoes = True

    def strips(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        answer = cluster(method, path, *rest, **more)
        if method == "PATCH" and undoes:
            node = cluster.read("nodes", "n1")
            for part in ("labels", "annotations"):
                node["metadata"].get(part, {}).pop(undone, None)
            return 200, cluster._store("nodes", "", node)
        return answer

    def log(event: str, why: str = "", **_: Any) -> None:
        told.append(f"{event}: {why}")

    actor = tried(Actor(CONFIG, lambda: KubeClient(strips, "n1", CONFIG), False, log))
    tell(actor, broken())
    pauses = [actor.round() for _ in range(3)]
    (unrest,) = (wait for wait in actor.exchange.acted.waits if "somebody undoes it" in wait.why)
    assert unrest.on is On.REFUSED
    assert "(report)" in unrest.why
    assert told.count(f"waiting: {unrest.why}") == 1
    assert min(pauses) >= 15.0
    undoes = False
    actor.round()
    assert unrest not in actor.exchange.acted.waits
