"""The Alertmanager configuration: valid, and each alert reaches whom it should, unless a graver one says it already."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from tests.monitoring.programs import program
from tests.monitoring.site import get, until
from tests.monitoring.stack import Program, Receiver, alertmanager
from tests.monitoring.test_rules import ALERTS, FOLDER

CONFIG = str(FOLDER / "alertmanager.yaml")
RECEIVERS = {"critical": "pager", "warning": "team", "info": "journal"}


def amtool(*arguments: str) -> str:
    command = [program("prometheus-alertmanager", "amtool"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_amtool_finds_nothing_wrong_with_the_configuration() -> None:
    said = amtool("check-config", CONFIG)
    assert "SUCCESS" in said
    assert " - 3 inhibit rules\n - 3 receivers" in said


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: str(alert["alert"]))
def test_each_alert_reaches_the_receiver_of_its_severity(alert: dict[str, dict[str, str]]) -> None:
    labels = {**alert["labels"], "alertname": alert["alert"], "node": "n1"}
    told = [f"{name}={value}" for name, value in labels.items()]
    receiver = RECEIVERS[alert["labels"]["severity"]]
    said = amtool("config", "routes", "test", f"--config.file={CONFIG}", f"--verify.receivers={receiver}", *told)
    assert said.split() == [receiver]


def test_somebody_elses_alerts_wake_nobody_through_this_route() -> None:
    said = amtool("config", "routes", "test", f"--config.file={CONFIG}", "alertname=Other", "severity=critical")
    assert said.split() == ["team"]


Labels = dict[str, str]
# What fires, what it silences, and what it doesn't although it looks alike.
INHIBITIONS: dict[str, tuple[Labels, Labels, list[Labels]]] = {
    "a withdrawn node's GPUs": (
        {"alertname": "GpuNodeWithdrawn", "node": "a1"},
        {"alertname": "GpuUnhealthy", "node": "a1", "pci_bus_id": "0000:1b:00.0"},
        [
            {"alertname": "GpuUnhealthy", "node": "a2", "pci_bus_id": "0000:1b:00.0"},
            {"alertname": "GpuEvictionBlocked", "node": "a1"},
            {"alertname": "SomebodyElses", "node": "a1", "scope": "gpu"},
        ],
    ),
    "a broken GPU's lesser alerts": (
        {"alertname": "GpuUnhealthy", "node": "b1", "pci_bus_id": "0000:1b:00.0"},
        {"alertname": "GpuDegraded", "node": "b1", "pci_bus_id": "0000:1b:00.0"},
        [
            {"alertname": "GpuDegraded", "node": "b1", "pci_bus_id": "0000:61:00.0"},
            {"alertname": "GpuDegraded", "node": "b2", "pci_bus_id": "0000:1b:00.0"},
            {"alertname": "SomebodyElses", "node": "b1", "pci_bus_id": "0000:1b:00.0", "scope": "gpu"},
        ],
    ),
    "each agent's absence where none answers": (
        {"alertname": "GpuHealthAgentNowhere"},
        {"alertname": "GpuHealthAgentAbsent", "node": "c1"},
        [{"alertname": "GpuHealthAgentCutOff", "node": "c1"}],
    ),
}


class Alerting:
    """A real Alertmanager without a Prometheus: the test says which alerts fire."""

    def __init__(self, running: Program, receiver: Receiver) -> None:
        self._running, self._receiver = running, receiver

    def fire(self, *alerts: Labels, ends: str | None = None) -> None:
        known = {alert["alert"]: alert["labels"] for alert in ALERTS}
        body = [
            {"labels": {**known.get(one["alertname"], {}), **one}, **({"endsAt": ends} if ends else {})}
            for one in alerts
        ]
        request = urllib.request.Request(
            f"{self._running.url}/api/v2/alerts", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        urllib.request.urlopen(request, timeout=30).close()

    def state(self, labels: Labels) -> str:
        """As Alertmanager has it: unprocessed, active or suppressed."""
        for alert in get(f"{self._running.url}/api/v2/alerts") or ():
            if labels.items() <= alert["labels"].items():
                return str(alert["status"]["state"])
        return "unknown"

    def told(self, labels: Labels) -> bool:
        return any(
            labels.items() <= one["labels"].items() and one["status"] == "firing"
            for _, _, payload in list(self._receiver.taken)
            for one in payload["alerts"]
        )


@pytest.fixture(scope="module")
def alerting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Alerting]:
    receiver = Receiver()
    running = alertmanager(tmp_path_factory.mktemp("alertmanager"), receiver, group_wait_s=2, group_interval_s=1)
    yield Alerting(running, receiver)
    running.stop()
    receiver.shutdown()
    receiver.server_close()


def test_every_inhibition_is_tested() -> None:
    assert len(yaml.safe_load(Path(CONFIG).read_text())["inhibit_rules"]) == len(INHIBITIONS)


@pytest.mark.parametrize("silenced", INHIBITIONS)
def test_what_a_graver_alert_says_is_told_once_and_by_itself_when_that_ends(alerting: Alerting, silenced: str) -> None:
    source, target, others = INHIBITIONS[silenced]
    alerting.fire(source)
    until("it fires", lambda: alerting.state(source) == "active")
    alerting.fire(target, *others)
    until("the others are told", lambda: all(alerting.told(one) for one in others))
    until("the source is told", lambda: alerting.told(source))
    assert alerting.state(target) == "suppressed"
    assert not alerting.told(target)
    alerting.fire(source, ends=datetime.now(UTC).isoformat())
    until("told after all", lambda: alerting.told(target))
