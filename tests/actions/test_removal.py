"""``release`` leaves nothing of ours and everything of others, whatever state the node was left in."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agent.actions.kube import KubeClient
from agent.actions.removal import release
from agent.model.names import FREE_LABEL, POOL_LABEL, STATE_LABEL
from agent.simulation.in_memory_cluster import InMemoryCluster
from tests.actions.test_kube import EVICT, FOREIGN, MERGE, cluster, drive, fatal, holders, node
from tests.actions.test_pool import LEASES
from tests.life import OPERANDS, Life

NAMESPACE = "gpu-health-agent"


def test_a_withdrawn_node_is_left_as_if_we_had_never_been_there() -> None:
    made = cluster()
    theirs = {"spec": {"taints": [FOREIGN], "unschedulable": True}, "metadata": {"labels": {"a": "b"}}}
    made("PATCH", "/api/v1/nodes/n1", theirs, MERGE)
    before = node(made)
    drive(KubeClient(made, "n1", EVICT), fatal())
    assert holders(made)["gpu-health-agent-withdrawn-gpu-0"] == "n1"
    told = list(release(made, NAMESPACE, "n1"))
    after = node(made)
    for part in ("labels", "annotations"):
        assert (after["metadata"].get(part) or {}) == (before["metadata"].get(part) or {})
    assert (after["spec"], after["status"]) == (before["spec"], before["status"])
    assert set(holders(made).values()) == {""}
    freed = made("GET", f"{LEASES}?labelSelector={FREE_LABEL}%3Dtrue")[1]["items"]
    assert len(freed) == len(holders(made)), "whoever waits for one is told that it is free"
    assert "gpu-health-agent/faults" in told[0]
    assert list(release(made, NAMESPACE, "n1")) == ["node n1: nothing of ours"]


def test_all_nodes_and_all_permits() -> None:
    made = cluster()
    drive(KubeClient(made, "n1", EVICT), fatal())
    drive(KubeClient(made, "n2", EVICT), fatal())
    list(release(made, NAMESPACE, None))
    assert holders(made) == {}
    assert "gpu-health-agent" not in json.dumps([node(made, "n1"), node(made, "n2")])


def test_of_a_large_cluster_all_nodes_and_all_permits_too() -> None:
    made = InMemoryCluster()
    for index in range(240):
        made.add_node(f"n{index}")
        made("PATCH", f"/api/v1/nodes/n{index}", {"metadata": {"labels": {STATE_LABEL: "healthy"}}}, MERGE)
        body = {"metadata": {"name": f"l{index}", "labels": {POOL_LABEL: "gpu"}}, "spec": {"holderIdentity": ""}}
        made("POST", LEASES, body)
    told = list(release(made, NAMESPACE, None))
    assert sum(line.startswith("node ") for line in told) == 240
    assert holders(made) == {}
    assert "gpu-health-agent" not in json.dumps([made.read("nodes", f"n{index}") for index in range(240)])


def test_released_in_the_middle_of_a_repair_the_operands_come_back() -> None:
    life = Life(95)
    while not life.repairs:
        life.tick()
    list(release(life.cluster, NAMESPACE, "n1"))
    assert life.node()["metadata"]["labels"].items() >= OPERANDS.items()
    assert not life.tainted()


def test_somebody_elses_write_in_between_is_not_lost() -> None:
    made = cluster()
    drive(KubeClient(made, "n1", EVICT), fatal())
    raced: list[int] = []

    def race(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        if method == "PATCH" and path == "/api/v1/nodes/n1" and not raced:
            raced.append(1)
            taints = [*node(made)["spec"]["taints"], FOREIGN]
            made("PATCH", "/api/v1/nodes/n1", {"spec": {"taints": taints}}, MERGE)
        return made(method, path, *rest, **more)

    list(release(race, NAMESPACE, "n1"))
    assert node(made)["spec"]["taints"] == [FOREIGN]


@pytest.mark.parametrize("text", ["{", '{"version":99}'])
def test_state_that_nobody_can_read_is_removed_all_the_same(text: str) -> None:
    made = cluster()
    body = {"metadata": {"annotations": {"gpu-health-agent/faults": text}}}
    made("PATCH", "/api/v1/nodes/n1", body, MERGE)
    list(release(made, NAMESPACE, "n1"))
    assert not node(made)["metadata"]["annotations"]
