"""Recording rules and alerts: unit-tested by promtool, one source in two forms, each with its runbook."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.documents import DOCUMENTS, ON_CALL, anchors
from tests.monitoring.programs import program
from tests.running import ROOT
from tests.status.test_metrics import exported

FOLDER = ROOT / "daemonset" / "monitoring"
RULES = FOLDER / "rules.yaml"
OPERATOR = FOLDER / "prometheusrule.yaml"
TESTS = Path(__file__).with_name("rules_test.yaml")


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


ALERTS = [rule for rule in rules() if "alert" in rule]
RUNBOOKS = next(rule["labels"]["address"] for rule in rules() if rule.get("record") == "gpu_health_runbooks:info")


def promtool(*arguments: str) -> str:
    done = subprocess.run([program("prometheus", "promtool"), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_finds_nothing_wrong_with_the_rules() -> None:
    assert f"SUCCESS: {len(rules())} rules found" in promtool("check", "rules", str(RULES))


def test_the_plain_scrape_configuration_is_one_and_finds_the_agents_port(tmp_path: Path) -> None:
    config = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())
    (job,) = config["scrape_configs"]
    # Debian builds Prometheus without the discovery of pods: everything else is checked.
    assert job.pop("kubernetes_sd_configs") == [{"role": "pod", "namespaces": {"names": ["gpu-health-agent"]}}]
    config["rule_files"] = [str(RULES)]
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(config))
    assert "SUCCESS" in promtool("check", "config", str(tmp_path / "prometheus.yaml"))
    assert re.search(r'up\{job=~"\(\.\+/\)\?' + job["job_name"] + '"', RULES.read_text())
    name, port = job["relabel_configs"][0]["regex"].split(";")
    daemonset = (ROOT / "daemonset" / "base" / "daemonset.yaml").read_text()
    assert f"app.kubernetes.io/name: {name}" in daemonset
    assert f"name: {port}, containerPort: 9836" in daemonset


def test_each_alert_fires_where_and_when_it_should_and_nowhere_else() -> None:
    promtool("test", "rules", str(TESTS))


def test_every_alert_is_tested_to_fire() -> None:
    tested = TESTS.read_text()
    for alert in ALERTS:
        assert re.search(rf"\b{alert['alert']}\b", tested), alert["alert"]


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: str(alert["alert"]))
def test_every_alert_says_what_it_means_and_has_a_runbook(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in ("critical", "warning", "info")
    assert alert["labels"]["scope"] in ("gpu", "node", "fleet")
    told = alert["annotations"]
    assert told["summary"]
    assert told["description"]
    assert told["runbook_url"] == f"{RUNBOOKS}#{alert['alert'].lower()}"
    assert alert["alert"].lower() in anchors(DOCUMENTS[ON_CALL])


def test_the_address_of_the_runbooks_is_absolute_and_the_same_in_every_form() -> None:
    assert RUNBOOKS.startswith("https://")
    kustomization = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
    ((added,),) = (yaml.safe_load(one["patch"]) for one in kustomization["patches"])
    values = yaml.safe_load((ROOT / "daemonset" / "chart" / "values.yaml").read_text())
    assert added["value"] == {"gpu-health-agent/runbooks": RUNBOOKS}
    assert values["monitoring"]["runbooks"] == RUNBOOKS


def test_every_runbook_is_one_of_an_alert() -> None:
    runbooks = DOCUMENTS[ON_CALL].partition("## What to do about an alert\n")[2].partition("\n## ")[0]
    assert re.findall(r"^### (\w+)$", runbooks, re.MULTILINE) == [alert["alert"] for alert in ALERTS]


def test_rules_use_only_metrics_that_the_agent_exports() -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    for rule in rules():
        used = set(re.findall(r"[a-z:_0-9]*gpu_health_[a-z_:0-9]*", rule["expr"]))
        used |= set(re.findall(r"gpu_health_[a-z_]+", str(rule.get("annotations", ""))))
        assert used <= recorded | exported(), rule


def test_the_operators_rules_are_the_plain_ones() -> None:
    """To accept a change: delete prometheusrule.yaml and run the test twice."""
    plain = RULES.read_text()
    if not OPERATOR.exists():
        OPERATOR.write_text(_HEAD + "".join(f"  {line}" if line.strip() else line for line in _body(plain)))
        raise AssertionError("prometheusrule.yaml was missing and is written anew: read it, then run again")
    operator = yaml.safe_load(OPERATOR.read_text())
    assert operator["spec"] == yaml.safe_load(plain)
    assert (operator["apiVersion"], operator["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")


_HEAD = """\
# Made of rules.yaml by a test, for prometheus-operator.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: gpu-health-agent
  namespace: gpu-health-agent
  labels: {app.kubernetes.io/name: gpu-health-agent}
spec:
"""


def _body(plain: str) -> list[str]:
    return plain[plain.index("groups:") :].splitlines(keepends=True)
