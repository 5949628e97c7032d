"""What the dashboard's panels show of three real agents with eight GPUs each, healthy and not, by a real Prometheus."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.monitoring.site import until
from tests.monitoring.stack import Fleet, Stack, fleet
from tests.monitoring.test_dashboard import PANELS, chosen

NODES = ("node-1", "node-2", "node-3")
HEALTHY = 'gpu_health_status{status="healthy"} == 1'
Shown = dict[str, dict[str, float]]  # by panel and legend; a table's row is its labels


def shown(stack: Stack, node: str = ".+") -> Shown:
    """What Grafana would draw: each panel's series by their legends, none without a name or with that of another."""
    found: Shown = {}
    for panel in (one for one in PANELS if one["type"] != "row"):
        assert panel["title"] not in found
        drawn = found[panel["title"]] = {}
        for target in panel["targets"]:
            for series in stack.query(chosen(target["expr"], node)):
                labels = {name: value for name, value in series["metric"].items() if name != "__name__"}
                text = target["legendFormat"] or " ".join(f"{{{{{name}}}}}" for name in sorted(labels) if labels[name])
                legend = re.sub(r"\{\{(\w+)\}\}", lambda one, of=labels: of[one[1]] or "nameless", text)
                assert "nameless" not in legend, panel["title"]
                assert legend not in drawn, f"{panel['title']}: two series are called {legend}"
                drawn[legend] = float(series["value"][1])
                assert math.isfinite(drawn[legend]), panel["title"]
    return found


def table(what: str, found: Shown) -> str:
    lines = [f"\n{what}"]
    for title, drawn in found.items():
        values = f"{min(drawn.values()):g} to {max(drawn.values()):g}" if drawn else "-"
        lines.append(f"  {title:<48}{len(drawn):4}  {values:<18}  {'; '.join(list(drawn)[:2])}")
    return "\n".join(lines)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Fleet]:
    with fleet(tmp_path, *NODES) as made:
        rates = "changes(gpu_health_source_age_seconds[1m]) > 0"  # what is reckoned from two scrapes is there
        until("all are scraped twice", lambda: len(made.stack.query(rates)) >= 2 * len(NODES))
        until("Prometheus sees them healthy", lambda: len(made.stack.query(HEALTHY)) == len(NODES))
        yield made


def test_every_panel_shows_what_is_so_of_a_healthy_fleet_and_of_a_sick_one(
    site: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    gpus = {f"{node} GPU {index}" for node in NODES for index in range(8)}
    healthy = shown(site.stack)
    with capsys.disabled():
        print(table("panel, series, values and the first legends: three healthy nodes", healthy))
    assert healthy["Nodes by status"] == {"healthy": 3}
    assert healthy["Withdrawn nodes"] == {"withdrawn": 0}
    assert healthy["Broken and in service"] == {"waiting": 0}
    assert healthy["Agents that are blind"] == {"blind": 0}
    assert healthy["Status"] == dict.fromkeys((f"{node} healthy" for node in NODES), 1)
    assert healthy["GPUs read"] == dict.fromkeys(NODES, 8)
    for title, least, most in (
        ("Temperature", 20, 90),
        ("Margin to the thermal limit", 5, 100),
        ("Memory temperature", 20, 100),
        ("Power", 10, 1500),
        ("Corrected memory errors", 0, 0),
    ):
        assert healthy[title].keys() == gpus, title
        assert all(least <= value <= most for value in healthy[title].values()), title
    assert healthy["PCIe replays"].keys() == gpus
    assert healthy["PCIe lanes"] == dict.fromkeys(gpus, 16)
    assert healthy["Since each source last spoke"].keys() >= {f"{n} {s}" for n in NODES for s in ("nvml", "kmsg")}
    assert max(healthy["Since each source last spoke"].values()) < 60
    assert healthy["GPU-hours in service, 7 days"] == {"": 1}
    assert healthy["Dismissed per node and day"] == {"": 0}
    quiet = {"Faults that stand", "What nodes wait for", "Xids a minute, by code", "Withdrawn for"}
    quiet |= {"Incidents by node, 30 days", "How long each part takes, 30 days", "Lost GPU-hours by cause, 7 days"}
    assert not [title for title in quiet if healthy[title]]

    # One is withdrawn and can't be drained, one is too hot, one finds the only permit taken.
    site.api.cluster.add_pod("research", "train-0", "node-1", owner="Job")
    site.api.protected.add("train-0")
    site.agents["node-1"].inject("--gpu", "3", "--xid", "79")
    site.agents["node-2"].inject("--gpu", "5", "--temperature", "95")
    until("node-1 is withdrawn", lambda: site.stack.query('gpu_health_withdrawn{node="node-1"} == 1'))
    site.agents["node-3"].inject("--gpu", "1", "--xid", "95")
    for told in (
        'gpu_health_waits{node="node-3",kind="permit"}',
        'gpu_health_waits{node="node-1",kind="eviction"}',
        'gpu_health_status{node="node-2",status="degraded"}',
        'rate(gpu_health_lost_gpu_seconds_total{node="node-1"}[7d])',
    ):
        until(told, partial(site.stack.query, f"{told} > 0"))
    sick = shown(site.stack)
    with capsys.disabled():
        print(table("one withdrawn, one degraded, one without a permit", sick))
    assert sick["Nodes by status"] == {"unhealthy": 2, "degraded": 1}
    assert sick["Withdrawn nodes"] == {"withdrawn": 1}
    assert sick["Broken and in service"] == {"waiting": 1}
    assert "withdrawn: 1 of 1" in sick["Permits"]
    assert sick["Status"] == {"node-1 unhealthy": 1, "node-2 degraded": 1, "node-3 unhealthy": 1}
    assert sick["GPUs read"] == {"node-1": 7, "node-2": 8, "node-3": 8}
    assert sick["Temperature"].keys() == gpus - {"node-1 GPU 3"}
    assert sick["Temperature"]["node-2 GPU 5"] == 95
    assert sick["Xids a minute, by code"] == {"Xid 79": 0.2, "Xid 95": 0.2}
    assert sick["Withdrawn for"].keys() == {"node-1"}
    assert 0 <= sick["Withdrawn for"]["node-1"] < 300
    for node, rule in (("node-1", "xid-79"), ("node-2", "temperature"), ("node-3", "xid-95")):
        assert [row for row in sick["Faults that stand"] if {node, rule} <= {*row.split()}], rule
    (lost,) = (row for row in sick["Faults that stand"] if "xid-79" in row.split())
    (known,) = site.stack.query('gpu_health_gpu_info{node="node-1",gpu="3"}')
    assert {"3", "gpuunhealthy", known["metric"]["serial"]} <= {*lost.split()}, "the GPU that is gone keeps its name"
    assert ["fatal" in row.split() for row in sick["Faults that stand"]] == [True, True, False], "the worst stand first"
    assert {"eviction node-1", "permit node-3"} <= sick["What nodes wait for"].keys()
    assert sick["Steps and what failed"]["node-1 retaint"] >= 1
    assert sick["Lost GPU-hours by cause, 7 days"].keys() == {"xid-79"}
    assert sick["How long each part takes, 30 days"].keys() == {"detect", "wait"}
    assert 0 < sick["GPU-hours in service, 7 days"][""] < 1

    # The variable chooses the nodes of the second half; the first is the fleet's, whatever is chosen.
    one = shown(site.stack, "node-2")
    below = [panel["title"] for panel in PANELS[[p["title"] for p in PANELS].index("Node $node") :]]
    for title in (title for title in below if title in one):
        assert all(legend.startswith("node-2") for legend in one[title]), title
    assert one["Withdrawn nodes"] == sick["Withdrawn nodes"]
