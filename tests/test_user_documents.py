"""The documents for users are true: their commands exist, their settings load, their links lead somewhere."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess

import pytest
import yaml

from agent.actions.checkpoint import declared
from agent.cli import parser
from agent.config.config_file import load
from agent.config.settings import Config, Mode
from agent.model import names
from agent.model.neighbours import ASKED, NEIGHBOURS, NOT_ASKED
from agent.model.ownership import GATE_TAINTS, OPERANDS
from tests.documents import (
    DOCUMENTS,
    INSTALLING,
    MOVED,
    ON_CALL,
    ROOT,
    anchors,
    blocks,
    renewed,
    settings,
    shell_blocks,
)

USERS = {name: text for name, text in DOCUMENTS.items() if name not in ("agent/README.md", "tests/README.md")}
# Run by test_operations.py and test_moved_pods.py in tests/cluster, and by tests/nodes/test_end_to_end.py.
OPERATIONS = [line for document in (INSTALLING, MOVED, ON_CALL) for block in shell_blocks(document) for line in block]
COMMANDS = sorted({line for name in USERS for block in shell_blocks(name) for line in block if line})


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_is_one(line: str) -> None:
    """make targets are resolved by make itself; make run and make test are what CI and the story test run."""
    program, *arguments = shlex.split(line.removeprefix(".venv/bin/"))
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
            *OPERATIONS,
            "kubectl apply -k daemonset/kit/",  # as tests/cluster/test_kit.py does
            "docker build --tag registry.example.com/gpu-kit daemonset/kit",  # as tests/image/kit.py does, by buildah
            "docker push registry.example.com/gpu-kit",
            "kubectl annotate node NODE gpu-health-agent/dismiss=xid-79@0000:1b:00.0",  # as its test does
            "kubectl annotate node NODE gpu-health-agent/dismiss=recurrence@node",  # as its test does
            # What it runs in the pod is run by tests/recording/test_flight.py.
            "kubectl exec -n gpu-health-agent POD -c agent -- gpu-health-agent evidence > evidence.tar.gz",
        )


def test_every_setting_that_is_shown_is_one() -> None:
    for text in (block for document in USERS.values() for block in blocks("yaml", document)):
        data = yaml.safe_load(text)
        if data.get("kind") == "CronJob":  # a template
            assert data["spec"]["suspend"] is True
        elif "spec" in data:  # a part of one that asks before it joins
            (asks,) = data["spec"]["initContainers"]
            assert parser(asks["args"]).parse_args(asks["args"]).command == "check"
        elif "metadata" in data:  # a part of a pod
            wish = declared(data["metadata"]["annotations"])
            assert (wish.way, wish.said) == ("http", "")
        else:
            assert Config.model_validate(data)


def test_the_shipped_configuration_loads() -> None:
    base = load(ROOT / "daemonset" / "base" / "config.yaml")
    assert base == Config(), "it shows the settings with their defaults"
    overlays = {path.parent.name: load(path) for path in ROOT.glob("daemonset/overlays/*/config.yaml")}
    assert overlays.pop("evict") == Config(mode=Mode.EVICT)
    assert all(config.mode == "evict" for config in overlays.values())


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {name for text in USERS.values() for name in re.findall(r"`make ([a-z0-9-]+)", text)} <= targets


def test_every_link_leads_to_a_document_and_its_chapter() -> None:
    for name, text in DOCUMENTS.items():
        for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
            path, _, anchor = link.partition("#")
            there = (ROOT / name).parent.joinpath(path).resolve() if path else ROOT / name
            assert there.exists(), f"{name}: {link}"
            assert not anchor or anchor in anchors(DOCUMENTS[str(there.relative_to(ROOT))]), f"{name}: {link}"


def test_every_name_on_the_cluster_is_described() -> None:
    described = DOCUMENTS["daemonset/base/README.md"]
    ours = {value for key, value in vars(names).items() if key.isupper() and isinstance(value, str)}
    presets = {name for row in NEIGHBOURS.values() for name in row.names}
    missing = {value for value in (*ours, *OPERANDS, *GATE_TAINTS, *presets) if not told(value, described)}
    assert not missing


def test_every_reason_of_an_event_or_condition_is_described() -> None:
    reasons = {
        argument.value
        for path in (ROOT / "agent" / "remediation").glob("*.py")
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
        if call.func.id in ("Announce", "Condition", "_event")
        for argument in call.args
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
        if re.fullmatch(r"([A-Z][a-z]+){2,}|Withdrawn|Returned|Dismissed", argument.value)
    }
    assert {"MovedForGpuFault", "NoGpuFault", "CheckFailed", "Returned"} <= reasons
    described = DOCUMENTS["daemonset/base/README.md"]
    assert not {reason for reason in (*reasons, ASKED, NOT_ASKED) if f"`{reason}`" not in described}


def test_every_admission_policy_is_described() -> None:
    files = [ROOT / "daemonset/base/policies.yaml", *ROOT.glob("daemonset/components/*/policies.yaml")]
    manifests = [yaml.safe_load_all(path.read_text()) for path in files]
    objects = [one for documents in manifests for one in documents if one["kind"] == "ValidatingAdmissionPolicy"]
    policies = {one["metadata"]["name"] for one in objects}
    assert len(policies) > 5
    assert not {name for name in policies if f"`{name}`" not in DOCUMENTS["daemonset/components/README.md"]}


def told(value: str, text: str) -> bool:
    """A family of names is told by its first one and the others' ends."""
    shown = re.sub(r"\{(\w+)\}", lambda found: found[1].upper(), value)
    return f"`{shown}`" in text or f"`….{value.rpartition('.')[2]}`" in text


def test_the_readme_stays_short() -> None:
    assert len(DOCUMENTS["README.md"].splitlines()) <= 200


@pytest.mark.parametrize("document", sorted(DOCUMENTS))
def test_the_generated_tables_are_true(document: str) -> None:
    assert renewed(document) == DOCUMENTS[document], "write them anew: python -m tests.documents"


def test_every_setting_has_a_reason() -> None:
    assert not [name for name, _, what in settings(Config, "") if not what]
