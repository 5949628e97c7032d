"""Data flows one way: sources → policy → actions; only the wiring sees more than one room."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1] / "agent"
WIRING = {
    "daemon.py",
    "acting.py",
    "cli.py",
    "check.py",
    "checkup.py",
    "decisions.py",
    "diagnose.py",
    "explain.py",
    "recording.py",
    "drill",
    "rehearsal.py",
    "replay.py",
    "simulate.py",
    "state.py",
    "view.py",
    "__main__.py",
}
ROOMS = {"sources", "policy", "actions"}
IMPURE = {"time", "threading", "socket", "subprocess", "os", "random", "logging", "structlog", "kubernetes", "pynvml"}
ONLY_IN = {
    "kubernetes": "actions",
    "pynvml": "sources",
    "pydcgm": "sources",
    "grpc": "sources",
    "google": "sources",
    "urllib3": "actions",
    "websocket": "actions",
}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            yield node.module or ""
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def files() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0]


def test_no_room_imports_another() -> None:
    for path in files():
        if room(path) in WIRING:
            continue
        seen = {name.split(".")[1] for name in imports(path) if name.startswith("agent.") and name.count(".")}
        assert not (seen & ROOMS) - {room(path)}, path


def test_policy_has_no_clock_no_thread_and_no_input_or_output() -> None:
    for path in (ROOT / "policy").rglob("*.py"):
        assert not {name.split(".")[0] for name in imports(path)} & IMPURE, path


def test_each_outside_library_is_used_in_one_room_only() -> None:
    for path in files():
        for name in imports(path):
            wanted = ONLY_IN.get(name.split(".")[0])
            assert wanted in (None, room(path)), f"{path} imports {name}"


def test_every_rule_file_is_in_the_index() -> None:
    index = (ROOT / "policy" / "rules" / "__init__.py").read_text(encoding="utf-8")
    for path in (ROOT / "policy" / "rules").glob("[!_]*.py"):
        assert f"{path.stem}.find" in index, path


def test_no_file_outgrows_a_readers_patience() -> None:
    for path in files():
        limit = 150 if path.parent.name == "rules" else 300
        assert len(path.read_text(encoding="utf-8").splitlines()) <= limit, path
