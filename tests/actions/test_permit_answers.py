"""A permit that only seems to be ours is none: what comes back from its write must be what was written."""

from __future__ import annotations

from typing import Any

import pytest

from agent.simulation.in_memory_cluster import InMemoryCluster
from tests.life import Life
from tests.remediation.test_repair import REBOOT

NONSENSE: tuple[Any, ...] = ({}, {"kind": "Status", "status": "Success"}, {"items": None}, {"metadata": {"name": "n1"}})


@pytest.mark.parametrize("answer", NONSENSE)
@pytest.mark.parametrize("writes", ["POST", "PUT"])
def test_no_node_is_withdrawn_on_an_answer_that_is_no_permit(answer: Any, writes: str) -> None:
    """As a proxy may give it: the Lease was never written."""
    life = Life(REBOOT)
    if writes == "PUT":
        life.run(400, rests=True)
        life.breaks()
    evicted = [*life.cluster.evicted]

    def proxied(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        return (200, answer) if method == writes and "/leases" in path else life.cluster(method, path, *rest, **more)

    life.api = proxied
    life.run(300)
    assert (life.tainted(), life.cluster.evicted) == (False, evicted)
    assert any("makes no sense" in why or "may still arrive" in why for why in life.waits), life.waits
    life.api = None
    life.run(1500, rests=True)
    assert not life.tainted()


class Rewriting(InMemoryCluster):
    """With a webhook that names another holder, or none, in every Lease."""

    named: str

    def _store(self, kind: str, namespace: str, body: dict[str, Any]) -> dict[str, Any]:
        if kind == "leases":
            body = {**body, "spec": {**body["spec"], "holderIdentity": self.named}}
        return super()._store(kind, namespace, body)


@pytest.mark.parametrize("named", ["", "n2/other"])
def test_no_node_is_withdrawn_under_a_permit_that_a_webhook_gives_to_another_and_that_is_told(named: str) -> None:
    cluster = Rewriting()
    cluster.named = named
    life = Life(REBOOT, cluster=cluster)
    life.run(60)
    assert (life.tainted(), life.cluster.evicted) == (False, [])
    assert any("was not written as asked" in why or "budget is spent" in why for why in life.waits), life.waits


def test_a_template_that_is_no_cronjob_is_told_as_an_answer_that_makes_no_sense() -> None:
    life = Life(REBOOT)
    whys: set[str] = set()

    def proxied(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        return (200, {}) if "/cronjobs/" in path else life.cluster(method, path, *rest, **more)

    life.api = proxied
    for _ in range(20):
        life.tick()
        whys.update(life.waits)
    assert any("cronjobs/" in why and "makes no sense" in why for why in whys), whys
    life.api = None
    life.run(900, rests=True)
    assert (life.tainted(), life.repairs) == (False, ["reboot_node"])


@pytest.mark.parametrize("answer", NONSENSE)
def test_an_answer_that_is_not_the_configmap_of_the_pause_is_a_pause(answer: Any) -> None:
    life = Life(REBOOT)

    def proxied(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        return (200, answer) if "/configmaps/" in path else life.cluster(method, path, *rest, **more)

    life.api = proxied
    life.run(60)
    assert (life.tainted(), life.cluster.evicted) == (False, [])
    assert any("gpu-health-agent-pause can't be read" in why for why in life.waits), life.waits
