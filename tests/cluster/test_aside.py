"""An idle node whose GPUs others need: how soon NVML is closed, and what that costs the API server."""

from __future__ import annotations

import time

import pytest

from tests.cluster.conftest import AgentProcess, Site, StartAgent

MERGE = "application/merge-patch+json"


def reads_gpus(agent: AgentProcess) -> bool:
    return any(one["name"] == "nvml" and one["up"] for one in agent.state().get("sources", ()))


def holds_gpus(agent: AgentProcess) -> bool:
    return any(one["name"] == "nvml" and one["pid"] for one in agent.state()["sources"])


def label(site: Site, name: str, value: str | None) -> None:
    site.plane.must("PATCH", f"/api/v1/nodes/{site.nodes[0]}", {"metadata": {"labels": {name: value}}}, MERGE)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("nvidia.com/gpu-driver-upgrade-state", "pod-restart-required"),
        ("nvidia.com/mig.config.state", "pending"),
        ("nvidia.com/gpu.deploy.operator-validator", "paused-for-mig-change"),
    ],
)
def test_nvml_is_closed_within_five_seconds_though_an_idle_node_is_looked_at_once_a_minute(
    site: Site, agent: StartAgent, name: str, value: str
) -> None:
    running = agent(simulate="idle")
    running.wait_for_simulation()
    site.plane.wait("it rests", lambda: (s := running.state())["status"] == "healthy" and not s["waits"])
    time.sleep(2)  # the Node's own controllers may write it yet, and its agent its labels
    before, began = running.state()["requests"], time.monotonic()
    assert before["WATCH"] == 1
    label(site, name, value)
    site.plane.wait("NVML is closed", lambda: not holds_gpus(running))
    took = time.monotonic() - began
    print(f"{name}={value}: closed after {took:.1f} s, requests {before} -> {running.state()['requests']}")
    assert took < 5  # 0.3 to 0.9 s where the load is 12; without the watch up to a minute
    label(site, name, None)
    site.plane.wait("NVML is read again", lambda: reads_gpus(running), 25)
