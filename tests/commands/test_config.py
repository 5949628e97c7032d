"""``gpu-health-agent config``: what is in force, and what may be written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from agent.cli import main
from agent.config.config_file import load
from agent.config.settings import Config


def test_what_it_prints_is_the_same_configuration_with_every_default(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("mode: taint\npolicy: {overrides: [{rule: xid-63, clear_s: latched}]}\n")
    assert main(["config", "--config", str(path)]) == 0
    printed = capsys.readouterr().out
    assert Config.model_validate(yaml.safe_load(printed)) == load(path)
    assert "poll_s: 5" in printed


def test_a_setting_that_is_none_ends_with_78_and_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("budget: {max_withdrawm: 1}\n")
    assert main(["config", "--config", str(path)]) == 78
    assert "budget.max_withdrawm" in capsys.readouterr().err


def test_the_schema_knows_every_section_and_refuses_what_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["properties"].keys() == Config.model_fields.keys()
    assert schema["additionalProperties"] is False
