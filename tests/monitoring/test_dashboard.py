"""The Grafana dashboard: well-formed, and every query is one over the metrics and labels that the agent exports."""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from agent.status.metrics import families
from tests.documents import label_names
from tests.monitoring.programs import program
from tests.monitoring.stack import FOLDER
from tests.status.test_metrics import snapshot

DASHBOARD = json.loads((FOLDER / "dashboard.json").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]


def queries() -> Iterator[tuple[str, str]]:
    """Each panel's title and query, for all nodes."""
    for panel in PANELS:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"].replace("$node", ".+")


def exported() -> dict[str, set[str]]:
    """Each metric's labels."""
    return {
        f"{family.name}_total" if family.type == "counter" else family.name: set(label_names(family))
        for family in families(snapshot())
    }


def test_every_query_is_one_for_prometheus(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{number}", "expr": expr} for number, (_, expr) in enumerate(queries())]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    command = [program("prometheus", "promtool"), "check", "rules", str(tmp_path / "rules.yaml")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"SUCCESS: {len(rules)} rules found" in done.stdout


def test_every_query_uses_metrics_and_labels_that_the_agent_exports() -> None:
    known = exported()
    for title, expr in queries():
        names = set(re.findall(r"gpu_health_\w+", expr))
        assert names, title
        assert names <= known.keys(), title
        labels = {label for inside in re.findall(r"\{([^}]*)\}", expr) for label in re.findall(r"(\w+)\s*[=!]", inside)}
        labels |= {label for by in re.findall(r"\b(?:by|on) \(([^)]*)\)", expr) for label in re.findall(r"\w+", by)}
        assert labels <= set.union(*(known[name] for name in names)), title


def test_legends_use_labels_that_the_query_keeps() -> None:
    for panel in PANELS:
        for target in panel.get("targets", ()):
            legend = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            kept = re.search(r"by \(([^)]*)\)", target["expr"])
            assert legend <= set(re.findall(r"\w+", kept[1]) if kept else ()), panel["title"]


def test_the_fleet_is_all_nodes_and_the_rest_only_the_nodes_chosen() -> None:
    """Eight GPUs of a thousand nodes are no lines that anyone can read."""
    below = [panel for panel in PANELS if panel["gridPos"]["y"] > PANELS[0]["gridPos"]["y"] and "targets" in panel]
    first = next(panel["gridPos"]["y"] for panel in PANELS if panel["title"].startswith("Node $node"))
    for panel in below:
        chosen = {"$node" in target["expr"] for target in panel["targets"]}
        assert chosen == {panel["gridPos"]["y"] > first}, panel["title"]
    (node,) = (one for one in DASHBOARD["templating"]["list"] if one["name"] == "node")
    assert not node["includeAll"]


def test_panels_have_a_place_a_title_and_a_number_of_their_own() -> None:
    taken: Counter[tuple[int, int]] = Counter()
    for panel in PANELS:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        taken.update((x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"]))
        assert panel["title"]
        if panel["type"] != "row":
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert set(taken.values()) == {1}, "no two panels overlap"
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    assert {variable["name"] for variable in DASHBOARD["templating"]["list"]} == {"datasource", "node"}
    assert DASHBOARD["uid"] == "gpu-health-agent"


def test_grafanas_own_model_of_a_dashboard_knows_every_field() -> None:
    """What it does not know, it drops; the two formats of annotations are the Prometheus data source's own."""
    register_default_plugins()
    read = json.loads(JSONEncoder().encode(Dashboard.from_json(DASHBOARD)))
    assert set(dropped(DASHBOARD, read)) == {"titleFormat", "textFormat"}


def dropped(one: Any, other: Any, name: str = "") -> Iterator[str]:
    """The names of the fields in which ``other`` has not what ``one`` has."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key, value in one.items():
            yield from dropped(value, other.get(key), key)
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for left, right in zip(one, other, strict=True):
            yield from dropped(left, right, name)
    elif one != other:
        yield name
