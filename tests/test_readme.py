"""The README is true: its commands exist, its settings load, its exit codes are the program's."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from agent.actions.checkpoint import declared
from agent.cli import parser
from agent.config.settings import Config, Mode, load
from tests.readme import TEXT as README
from tests.readme import renewed, settings, shell_blocks

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
# Run one after the other by tests/cluster/test_operations.py and by tests/nodes/test_end_to_end.py.
OPERATIONS = [
    line for chapter in ("Install", "What to do when paged") for block in shell_blocks(chapter) for line in block
]
COMMANDS = [line for kind, text in BLOCKS if kind == "sh" for line in text.splitlines() if line]


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_of_the_readme_is_one(line: str) -> None:
    """make targets are resolved by make itself; make run and make test are what CI and the story test run."""
    program, *arguments = shlex.split(line)
    if program == "make":
        subprocess.run(["make", "--dry-run", *arguments], cwd=ROOT, check=True, capture_output=True)
    elif program == "gpu-health-agent":
        assert parser(arguments).parse_args(arguments).command
    else:
        for folder in (
            one for one in arguments if one.startswith("daemonset/") and one != "daemonset/gpu-health-agent"
        ):
            assert (ROOT / folder).is_dir()
        assert line in (
            "kubectl apply -k daemonset/monitoring/",  # tests/cluster/test_monitoring.py
            *OPERATIONS,
            "kubectl apply -k daemonset/",  # the control plane's fixture applies it
            "kubectl apply -k daemonset/kit/",  # as tests/cluster/test_kit.py does
            "kubectl annotate node NODE gpu-health-agent/dismiss=xid-79@0000:1b:00.0",  # as its test does
        )


def test_every_setting_of_the_readme_is_one() -> None:
    for kind, text in BLOCKS:
        if kind == "yaml":
            data = yaml.safe_load(text)
            if "metadata" in data:  # a part of a pod
                wish = declared(data["metadata"]["annotations"])
                assert (wish.way, wish.said) == ("http", "")
            else:
                assert Config.model_validate(data)


def test_the_shipped_configuration_loads() -> None:
    base = load(ROOT / "daemonset" / "base" / "config.yaml")
    assert base == Config(mode=Mode.EVICT), "it shows the settings with their defaults"
    overlays = {path.parent.name: load(path) for path in ROOT.glob("daemonset/overlays/*/config.yaml")}
    assert overlays.pop("observe") == Config()
    assert all(config.mode == "evict" for config in overlays.values())


def test_every_make_target_of_the_readme_exists() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z0-9-]+)", README)) <= targets


def test_the_generated_tables_are_true() -> None:
    assert renewed(README) == README, "write them anew: python -m tests.readme"


def test_every_setting_has_a_reason() -> None:
    assert not [name for name, _, what in settings(Config, "") if not what]
