"""From a fault on a simulated GPU to a webhook: real agents, a real Prometheus, a real Alertmanager."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.monitoring.site import until
from tests.monitoring.stack import GROUP_INTERVAL_S, GROUP_WAIT_S, SCRAPE_S, Fleet, fleet
from tests.monitoring.test_dashboard import queries


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Fleet]:
    with fleet(tmp_path, "node-1", "node-2") as made:
        made.api.cluster.add_pod("research", "train-0", "node-1", owner="Job")
        made.api.protected.add("train-0")
        yield made


def test_a_fault_reaches_the_webhook_grouped_and_is_resolved_after_the_cure(
    site: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    stack, told = site.stack, site.stack.receiver.told
    first, second = site.agents.values()

    began = time.monotonic()
    first.inject("--gpu", "3", "--xid", "79")
    withdrawn_at, withdrawn = until("the webhook", lambda: told("team", "node-1", "GpuNodeWithdrawn"))
    assert withdrawn["groupLabels"] == {"node": "node-1"}
    said = withdrawn["alerts"][0]["annotations"]["description"]
    assert "GPU 0000:61:00.0: xid-79, remedy reboot_node" in said

    assert not [a for a in stack.alerts() if a["labels"]["alertname"] == "GpuUnhealthy"], "the agent has acted"

    assert len(stack.query('gpu_health_fault{node="node-1",gpu="3"}')) == 1, "who the card was is known"
    assert len(stack.query('gpu_health_fault{node="node-1",pci_bus_id="0000:61:00.0",rule="xid-79"}')) == 1
    assert stack.query('gpu_health_temperature_celsius{node="node-1",pci_bus_id="0000:61:00.0"}') == []
    assert len(stack.query('gpu_health_temperature_celsius{node="node-1"}')) == 7
    assert stack.query('gpu_health_waits{node="node-1",kind="eviction"}')[0]["value"][1] == "1"

    # The one permit of two nodes is taken: what breaks now stays in service, and that wakes somebody.
    second_began = time.monotonic()
    second.inject("--gpu", "1", "--xid", "95")
    second.inject("--gpu", "2", "--xid", "95")
    paged_at, paged = until("the pager", lambda: told("pager", "node-2", "GpuUnhealthy"), 120)
    assert paged["groupLabels"] == {"node": "node-2"}
    assert sorted(a["labels"]["gpu"] for a in paged["alerts"]) == ["1", "2"], "one notification for the node"
    assert stack.query('gpu_health_waits{node="node-2",kind="permit"}')[0]["value"][1] == "1"

    # No pod was evicted and nothing failed: every other query of the dashboard shows something.
    empty = {expression for _, expression in queries() if not stack.query(expression)}
    assert all("checkpoints" in one or "failures" in one for one in empty), empty

    cured = time.monotonic()
    first.inject("--clear")
    second.inject("--clear")
    ended_at, _ = until("resolved", lambda: told("team", "node-1", "GpuNodeWithdrawn", "resolved"))
    until("resolved", lambda: told("pager", "node-2", "GpuUnhealthy", "resolved"))
    assert first.state()["status"] == "healthy"

    second.stop()
    absent = 'node:gpu_health_agent_absent:max{node="node-2"}'
    until("its absence is seen", lambda: stack.query(absent))
    with capsys.disabled():
        print(
            f"\nscrape and evaluation {SCRAPE_S} s, group_wait {GROUP_WAIT_S} s, group_interval {GROUP_INTERVAL_S} s:"
            f"\n  fault → webhook, withdrawn node   {withdrawn_at - began:5.1f} s"
            f"\n  fault → webhook, no permit left   {paged_at - second_began:5.1f} s"
            f"\n  cure → resolved (soak 2 s)        {ended_at - cured:5.1f} s"
        )
