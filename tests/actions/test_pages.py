"""Whoever reads a whole fleet reads it in pages: ten thousand Nodes whole are 240 MB."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from agent.actions.api import Api
from agent.actions.fleet import read_fleet
from agent.actions.removal import release
from agent.config.settings import Config
from agent.drill.cluster import Cluster
from agent.model.names import STATE_LABEL
from agent.simulation.in_memory_cluster import InMemoryCluster

NODES = 1100
HOME = "gpu-health-agent"
READERS: dict[str, Callable[[Api], int]] = {
    "nodes": lambda made: len(read_fleet(made, Config().budget).nodes),
    "release": lambda made: len(list(release(made, HOME, None))),
    "drill, its nodes": lambda made: len(Cluster(made, "kit", HOME).nodes()),
    "drill, all pods": lambda made: len(Cluster(made, "kit", HOME).all_pods()),
    "drill, its agents": lambda made: len(Cluster(made, "kit", HOME).agent_pods()),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_fleet_is_read_whole_and_in_pages(reader: str) -> None:
    made = InMemoryCluster()
    for index in range(NODES):
        labels = {STATE_LABEL: "healthy", "nvidia.com/gpu.present": "true"}
        made.add_node(f"n{index}")
        made("PATCH", f"/api/v1/nodes/n{index}", {"metadata": {"labels": labels}}, "application/merge-patch+json")
        pod = {"name": f"agent-{index}", "labels": {"app.kubernetes.io/name": HOME}}
        body = {"metadata": pod, "spec": {"nodeName": f"n{index}"}, "status": {"phase": "Running"}}
        made("POST", f"/api/v1/namespaces/{HOME}/pods", body)
    asked = []

    def api(method: str, path: str, *words: Any, **more: Any) -> tuple[int, Any]:
        asked.append((method, urlsplit(path)))
        return made(method, path, *words, **more)

    assert READERS[reader](api) == NODES
    lists = [url for method, url in asked if method == "GET" and url.path.endswith(("/nodes", "/pods"))]
    limits = [int(parse_qs(url.query).get("limit", ["0"])[0]) for url in lists if "spec.nodeName" not in url.query]
    assert all(1 <= limit <= 500 for limit in limits)
    assert len(limits) >= NODES / 500
