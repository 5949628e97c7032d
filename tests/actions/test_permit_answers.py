"""A permit that only seems to be ours is none: what comes back from its write must be what was written."""

from __future__ import annotations

import re
from typing import Any

import pytest

from agent.actions.kube import KubeClient
from agent.model.errors import RefusedError
from agent.simulation.in_memory_cluster import InMemoryCluster
from tests.actions.test_early_permits import CONFIG as EARLY
from tests.actions.test_early_permits import SIZE
from tests.actions.test_kube import MERGE, drive, fatal, taints
from tests.actions.test_permits import Clock
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


class Stripping(InMemoryCluster):
    """With a webhook that takes the annotations off every Lease, the one that says that the pool is yet to be read."""

    def _store(self, kind: str, namespace: str, body: dict[str, Any]) -> dict[str, Any]:
        bare = {**body, "metadata": {**body["metadata"], "annotations": {}}}
        return super()._store(kind, namespace, bare if kind == "leases" else body)


def test_a_permit_that_lost_the_word_that_its_pool_is_unread_exceeds_no_budget_and_that_is_told() -> None:
    cluster, clock, told = Stripping(), Clock(), set[str]()
    for i in range(SIZE):
        cluster.add_node(f"n{i}")
    for i in range(SIZE - SIZE // 10, SIZE):  # as many as the budget allows are out already
        cluster("PATCH", f"/api/v1/nodes/n{i}", {"spec": {"unschedulable": True}}, MERGE)
    client = KubeClient(cluster, "n0", EARLY, clock)
    for _ in range(30):
        try:
            drive(client, fatal(), EARLY, rounds=1)
        except RefusedError as error:
            told.add(str(error))
        clock.now += 20
    assert taints(cluster, "n0") == []
    assert any("pool-size is gone; does a webhook change it?" in why for why in told), told


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
    assert any(re.search(r"gpu-health-agent-pause (can't be read|makes no sense)", why) for why in life.waits), (
        life.waits
    )
