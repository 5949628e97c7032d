"""``gpu-health-agent config``: what is in force, and what may be written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


def test_what_is_refused_of_a_text_the_schema_refuses_too() -> None:
    """Else Helm takes it, and each agent of the fleet ends with 78."""
    schema = Config.model_json_schema()
    for path, one in texts(schema, schema["properties"]):
        if not one.keys() & {"pattern", "enum", "format"}:
            data: Any = "a b"
            for name in reversed(path):
                data = {name: data}
            assert Config.model_validate(data), path


def texts(
    schema: dict[str, Any], settings: dict[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Each setting that takes a text, with its form."""
    for name, one in settings.items():
        known = schema["$defs"][one["$ref"].rpartition("/")[2]] if "$ref" in one else one
        if "properties" in known:
            yield from texts(schema, known["properties"], (*path, name))
        yield from (((*path, name), each) for each in known.get("anyOf", [known]) if each.get("type") == "string")
