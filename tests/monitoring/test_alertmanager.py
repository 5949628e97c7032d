"""The Alertmanager configuration, by amtool: valid, and each alert reaches whom it should."""

from __future__ import annotations

import subprocess

import pytest

from tests.monitoring.programs import program
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
