"""What agent/README.md and tests/README.md name is there: files, classes, tests, commands, stored fields."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path

import pytest

from agent.cli import COMMANDS
from agent.config.settings import Config
from agent.sources.process.command_lines import names as sources
from tests.documents import DOCUMENTS, ROOT, blocks
from tests.incident import play
from tests.life import Life

CODE, TESTS = DOCUMENTS["agent/README.md"], DOCUMENTS["tests/README.md"]
BOTH = f"{CODE}\n{TESTS}"
MADE_UP = re.compile(r"NAME|agent/sources/psu/")  # what a recipe makes
ENDINGS = r"py|csv|css|yaml|tpl|md|golden"


def quoted(text: str = BOTH) -> set[str]:
    """What stands between backticks, outside of blocks."""
    return set(re.findall(r"`([^`\n]+)`", re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE)))


def classes() -> dict[str, set[str]]:
    """Each class of the agent with the names in its body; those of one name together."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in (ROOT / "agent").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                for one in node.body:
                    if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name):
                        found[node.name].add(one.target.id)
                    elif isinstance(one, ast.Assign):
                        found[node.name] |= {target.id for target in one.targets if isinstance(target, ast.Name)}
                    elif isinstance(one, ast.FunctionDef):
                        found[node.name].add(one.name)
                found[node.name].add("")
    return found


def test_every_file_that_is_named_is_there() -> None:
    path = rf"(agent|tests|daemonset)/[\w./-]*(/|\.({ENDINGS}))"
    named = {text for text in quoted("\n".join(DOCUMENTS.values())) if re.fullmatch(path, text)}
    assert len(named) > 40
    gone = {name for name in named if not (ROOT / name).exists() and not MADE_UP.search(name)}
    assert not gone


def test_what_the_ledger_holds_is_described_field_by_field() -> None:
    chapter = CODE.partition("\n### The annotation `gpu-health-agent/history`\n")[2].partition("\n### ")[0]
    parts = chapter.split("\nAn incident:\n")
    whole, incident = ({row.split("`")[1] for row in part.splitlines() if row.startswith("| `")} for part in parts)
    life = Life(95)
    seen: tuple[set[str], set[str]] = set(), set()
    for _ in range(40):
        life.tick()
        data = json.loads((life.node()["metadata"].get("annotations") or {}).get("gpu-health-agent/history", "{}"))
        seen[0].update(data)
        seen[1].update(key for one in data.get("incidents", ()) for key in one)
    assert seen[0] | {"older"} == whole
    assert seen[1] | {"again", "collected", "idle"} == incident


def test_every_file_of_the_house_is_in_its_rooms_table_and_no_other() -> None:
    rooms = CODE.partition("\n## The rooms\n")[2].partition("\n## ")[0]
    for heading, text in re.findall(r"^### `(agent/[\w/]*)`\n(.*?)(?=^### |\Z)", rooms, re.DOTALL | re.MULTILINE):
        cells = re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
        listed = [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]
        there = {p.name for p in (ROOT / heading).iterdir() if re.fullmatch(r"[^_].*\.(py|csv|css)", p.name)}
        assert sorted(listed) == sorted(there), heading
    folders = {f"{path.parent.relative_to(ROOT)}/" for path in (ROOT / "agent").rglob("*.py")}
    assert folders == set(re.findall(r"^### `(agent/[\w/]*)`$", rooms, re.MULTILINE))


def test_every_class_of_the_glossary_is_one() -> None:
    rows = CODE.partition("\n## Glossary\n")[2].partition("\n## ")[0].splitlines()
    named = {name for row in rows if row.startswith("| ") for name in re.findall(r"`(\w[\w.]*)`", row.split("|")[3])}
    assert len(named) > 40
    known = classes()
    wrong = {name for name in named if name.partition(".")[2] not in known.get(name.partition(".")[0], ())}
    assert not wrong


def test_every_test_that_is_named_is_one() -> None:
    named = {text for text in quoted() if re.fullmatch(r"test_\w+", text)}
    named |= set(re.findall(r"::(test_\w+)", BOTH))
    assert len(named) > 15
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    assert not {name for name in named if f"def {name}(" not in code}


@pytest.mark.parametrize("line", [line for block in blocks("sh", BOTH) for line in map(str.strip, block.splitlines())])
def test_every_command_is_one(line: str) -> None:
    program, *arguments = shlex.split(line)
    if program == "make":
        subprocess.run(["make", "--dry-run", *arguments], cwd=ROOT, check=True, capture_output=True)
    elif program == ".venv/bin/python":
        assert arguments[0] == "-m"
        assert find_spec(arguments[1])
    else:
        assert program == ".venv/bin/pytest"
        assert all((ROOT / one.partition("::")[0]).exists() for one in arguments if one.startswith("tests/"))


def test_every_make_target_and_module_that_is_named_is_there() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {name for text in quoted() if text.startswith("make ") for name in text.split()[1:]} <= targets
    assert all(find_spec(text.split()[2]) for text in quoted() if text.startswith("python -m "))


def test_every_command_has_its_file_and_is_in_the_readme() -> None:
    files = {path.stem for path in (ROOT / "agent" / "commands").glob("[!_]*.py")}
    assert files == {*COMMANDS, "setup"}
    assert not {name for name in COMMANDS if f"gpu-health-agent {name}" not in DOCUMENTS["README.md"]}


def test_every_source_is_in_the_picture() -> None:
    (picture,) = blocks("mermaid", BOTH)
    assert {*sources(Config())} <= {*picture.split()}


def test_the_incident_that_is_shown_goes_as_it_says(tmp_path: Path) -> None:
    (shown,) = (block for block in blocks("yaml", TESTS) if block.startswith("story:"))
    path = tmp_path / "shown.yaml"
    path.write_text(shown)
    assert not play(path).wrong


def test_what_is_stored_is_described_field_by_field() -> None:
    stored = CODE.partition("\n## What is stored\n")[2].partition("\n### The annotation `gpu-health-agent/history`\n")[
        0
    ]
    parts = re.split(r"^A fault:$|^An attempt:$", stored, flags=re.MULTILINE)
    rows = [[row.split("|")[1] for row in part.splitlines() if row.startswith("| `")] for part in parts]
    whole, fault, attempt = ({name for row in some for name in re.findall(r"`(\w+)`", row)} for some in rows)
    life = Life(95, passes=False)
    seen: tuple[set[str], set[str], set[str]] = set(), set(), set()
    for _ in range(20):
        life.tick()
        text = (life.node()["metadata"].get("annotations") or {}).get("gpu-health-agent/faults", "{}")
        data = json.loads(text)
        for names, told in zip(seen, ([data], data.get("faults", ()), data.get("attempts", ())), strict=True):
            names.update(key for one in told for key in one)
    assert life.repairs
    assert "attempts" in seen[0]
    for described, names in zip((whole, fault, attempt), seen, strict=True):
        assert names <= described
    code = "".join((ROOT / "agent" / "remediation" / f"{name}.py").read_text() for name in ("stored", "records"))
    gone = {name for name in whole | fault | attempt if f'"{name}"' not in code and f"    {name}: " not in code}
    assert not gone
