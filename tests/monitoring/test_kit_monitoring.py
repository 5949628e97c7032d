"""The kit's alerts and dashboard: well-formed, tested to fire, and of metrics that the kit's programs export."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.monitoring.programs import program
from tests.running import ROOT

FOLDER = ROOT / "daemonset" / "kit" / "monitoring"
TESTS = Path(__file__).with_name("kit_rules_test.yaml")
RULES: dict[str, Any] = yaml.safe_load((FOLDER / "prometheusrule.yaml").read_text())["spec"]
ALERTS: list[dict[str, Any]] = RULES["groups"][0]["rules"]
PANELS: list[dict[str, Any]] = json.loads((FOLDER / "dashboard.json").read_text())["panels"]
TARGETS = [(panel["title"], target) for panel in PANELS for target in panel["targets"]]


def promtool(*arguments: str) -> str:
    done = subprocess.run([program("prometheus", "promtool"), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_each_alert_of_the_kit_fires_when_it_should_and_not_before(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(RULES))
    (tmp_path / TESTS.name).write_text(TESTS.read_text())
    assert f"SUCCESS: {len(ALERTS)} rules found" in promtool("check", "rules", str(tmp_path / "rules.yaml"))
    promtool("test", "rules", str(tmp_path / TESTS.name))


def test_every_alert_of_the_kit_is_tested_to_fire_and_says_what_it_means() -> None:
    for alert in ALERTS:
        assert alert["alert"] in TESTS.read_text()
        assert alert["annotations"].keys() == {"summary", "description"}
        assert alert["labels"]["severity"] in ("critical", "warning")


def test_every_query_of_the_kits_dashboard_is_one_for_prometheus(tmp_path: Path) -> None:
    rules = [{"record": f"p:{number}", "expr": target["expr"]} for number, (_, target) in enumerate(TARGETS)]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    assert f"SUCCESS: {len(rules)} rules found" in promtool("check", "rules", str(tmp_path / "rules.yaml"))


@pytest.fixture(scope="module")
def exported() -> set[str]:
    """The samples' names that the programs' sources give, as Prometheus stores them."""
    kit = ROOT / "daemonset" / "kit"
    script = """
from gateway_metrics import GatewayMetrics
from prometheus_client import REGISTRY
from replicas import Limits, Replica
replica = Replica("h", 1, Limits())
GatewayMetrics(lambda: [replica], lambda: 0).requests.labels(200)
print(*{sample.name for family in REGISTRY.collect() for sample in family.samples})
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=kit, capture_output=True, text=True, check=True)
    return {*done.stdout.split(), *re.findall(r"\binference_\w+", (kit / "inference.py").read_text())}


def test_the_kits_alerts_and_panels_are_of_metrics_that_it_exports(exported: set[str]) -> None:
    for expr in (*(alert["expr"] for alert in ALERTS), *(target["expr"] for _, target in TARGETS)):
        names = set(re.findall(r"\b(?:gateway|inference)_\w+", expr))
        assert names, expr
        assert names <= exported, expr


def test_the_kits_legends_use_labels_that_the_query_keeps() -> None:
    for title, target in TARGETS:
        kept = re.search(r"by \(([^)]*)\)", target["expr"])
        assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= set(
            re.findall(r"\w+", kept[1]) if kept else ()
        ), title


def places() -> Iterator[tuple[int, int]]:
    for panel in PANELS:
        at = panel["gridPos"]
        yield from ((x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"]))


def test_no_two_panels_of_the_kit_overlap() -> None:
    taken = list(places())
    assert len(taken) == len(set(taken))
    assert max(x for x, _ in taken) < 24
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
