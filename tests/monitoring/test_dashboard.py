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
from tests.documents import DOCUMENTS, ON_CALL, anchors, label_names, stored_names
from tests.monitoring.programs import program
from tests.monitoring.stack import FOLDER
from tests.monitoring.test_rules import rules
from tests.status.test_metrics import snapshot

DASHBOARD = json.loads((FOLDER / "dashboard.json").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]


def chosen(expr: str, node: str = ".+", cluster: str = ".*") -> str:
    """A query with what its variables stand for: all nodes of all clusters, unless others are named."""
    return expr.replace("$node", node).replace("$cluster", cluster)


def queries() -> Iterator[tuple[str, str]]:
    """Each panel's title and query, for all nodes."""
    for panel in PANELS:
        for target in panel.get("targets", ()):
            yield panel["title"], chosen(target["expr"])


def exported() -> dict[str, set[str]]:
    """Each metric's labels."""
    return {
        name: {*label_names(family), *(["le"] if name.endswith("_bucket") else [])}
        for family in families(snapshot())
        for name in stored_names(family)
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
        grouped = re.findall(r"\b(?:by|on|group_left) \(([^)]*)\)", expr)
        made = {*re.findall(r'count_values by \([^)]*\) \("(\w+)"', expr), "cluster"}  # cluster is Prometheus' own
        labels = (labels | {label for by in grouped for label in re.findall(r"\w+", by)}) - made
        assert labels <= set.union(*(known[name] for name in names)), title


def test_legends_use_labels_that_the_query_keeps() -> None:
    for panel in PANELS:
        for target in panel.get("targets", ()):
            legend = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            kept = re.search(r"by \(([^)]*)\)", target["expr"])
            made = set(re.findall(r'count_values by \([^)]*\) \("(\w+)"', target["expr"]))
            assert legend <= set(re.findall(r"\w+", kept[1]) if kept else ()) | made, panel["title"]


def test_every_query_asks_for_the_clusters_that_are_chosen() -> None:
    for panel in PANELS:
        for target in panel.get("targets", ()):
            selectors = re.findall(r"gpu_health_\w+(\{[^}]*\})?", target["expr"])
            assert selectors
            assert all('cluster=~"$cluster"' in one for one in selectors), panel["title"]
    cluster = next(one for one in DASHBOARD["templating"]["list"] if one["name"] == "cluster")
    assert cluster["allValue"] == ".*", "where no such label is, all of them are shown"


def test_a_fault_leads_to_its_runbook_and_to_its_node() -> None:
    (panel,) = (one for one in PANELS if one["title"] == "Faults that stand")
    links = {
        override["matcher"]["options"]: one["value"][0]["url"]
        for override in panel["fieldConfig"]["overrides"]
        for one in override["properties"]
        if one["id"] == "links"
    }
    assert links["node"].startswith(f"/d/{DASHBOARD['uid']}?")
    assert "var-node=${__value.text}" in links["node"]
    assert links["runbook"] == "${runbooks}#${__value.text}"
    (expr,) = (target["expr"] for target in panel["targets"])
    led = dict(re.findall(r'"runbook", "([\w-]+)", "severity", "(\w+)"', expr))
    assert sorted(led.values()) == ["degraded", "fatal", "notice"]
    assert led.keys() <= anchors(DOCUMENTS[ON_CALL])
    (runbooks,) = (one for one in DASHBOARD["templating"]["list"] if one["name"] == "runbooks")
    (rule,) = (rule for rule in rules() if rule.get("record") == "gpu_health_runbooks:info")
    assert runbooks["query"]["query"] == f"label_values({rule['record']}, {', '.join(rule['labels'])})"


def test_the_fleet_is_all_nodes_and_the_rest_only_the_nodes_chosen() -> None:
    """Eight GPUs of a thousand nodes are no lines that anyone can read."""
    below = [panel for panel in PANELS if panel["gridPos"]["y"] > PANELS[0]["gridPos"]["y"] and "targets" in panel]
    first = next(panel["gridPos"]["y"] for panel in PANELS if panel["title"].startswith("Node $node"))
    for panel in below:
        of_nodes = {"$node" in target["expr"] for target in panel["targets"]}
        assert of_nodes == {panel["gridPos"]["y"] > first}, panel["title"]
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
    assert {variable["name"] for variable in DASHBOARD["templating"]["list"]} == {
        "datasource",
        "cluster",
        "node",
        "runbooks",
    }
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
