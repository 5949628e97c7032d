"""The house: a room imports only what stands below it, and pure rooms stay pure."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator
from pathlib import Path

from agent.config.source_index import SOURCES
from agent.model import errors, names

ROOT = Path(__file__).parents[1] / "agent"
# From the ground up. Rooms on one floor never import each other.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("model",),
    ("config",),
    ("sources", "diagnosis", "remediation", "actions"),
    ("simulation",),
    ("recording",),
    ("status",),
    ("runtime",),
    ("drill",),
    ("commands",),
    ("cli",),
)
PURE = ("model", "diagnosis", "remediation")
IMPURE = {"time", "threading", "socket", "subprocess", "os", "random", "logging", "structlog", "kubernetes", "pynvml"}
ONLY_IN = {
    "argcomplete": ("cli",),
    "kubernetes": ("actions", "drill"),
    "pynvml": ("sources", "simulation"),
    "pydcgm": ("sources",),
    "grpc": ("sources", "status"),
    "google": ("sources",),
    "urllib3": ("actions",),
    "websocket": ("drill",),
    "structlog": ("runtime",),
    "prometheus_client": ("status",),
}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            yield node.module or ""
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def files() -> list[Path]:
    return [path for path in sorted(ROOT.rglob("*.py")) if path.parent != ROOT or path.stem == "cli"]


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def test_a_room_imports_only_what_stands_below_it() -> None:
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    for path in files():
        own = room(path)
        for name in imports(path):
            if name.startswith("agent."):
                other = name.split(".")[1]
                assert other == own or floor[other] < floor[own], f"{path} imports {name}"


def test_pure_rooms_have_no_clock_no_thread_and_no_input_or_output() -> None:
    for path in files():
        if room(path) in PURE:
            assert not {name.split(".")[0] for name in imports(path)} & IMPURE, path


def test_each_outside_library_is_used_where_it_belongs_only() -> None:
    for path in files():
        for name in imports(path):
            wanted = ONLY_IN.get(name.split(".")[0])
            assert wanted is None or room(path) in wanted, f"{path} imports {name}"


def test_what_acts_reads_no_clock_but_those_it_was_given() -> None:
    """So each node of a test has its own two. Sockets count real seconds."""
    clocks = {"time", "monotonic"}
    for path in files():
        if room(path) == "actions" and path.stem not in ("checkpoint", "deadline"):
            calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
            assert not clocks & {
                f.attr for f in calls if isinstance(f, ast.Attribute) and ast.unparse(f.value) == "time"
            }, path


def test_every_error_of_ours_stands_in_the_one_tree() -> None:
    """One that derives from Python's own could be taken for a bug, and a bug for it."""
    pythons = {name for name, kind in vars(builtins).items() if isinstance(kind, type) and issubclass(kind, Exception)}
    drawn = (errors.__doc__ or "").split()
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
                assert node.name == "AgentError" or not bases & pythons, f"{path}: {node.name}"
                assert not node.name.endswith("Error") or node.name in drawn, f"{path}: {node.name}"


def test_a_name_on_the_cluster_is_spelled_in_one_file() -> None:
    """Sentences for people may have it in them."""
    keys = {name for key, name in vars(names).items() if key.isupper() and isinstance(name, str)}
    for path in sorted(ROOT.rglob("*.py")):
        tree = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        pieces = {part for node in tree if isinstance(node, ast.JoinedStr) for part in node.values}
        spelled = {node.value for node in tree if isinstance(node, ast.Constant) and node not in pieces}
        assert path == ROOT / "model" / "names.py" or not keys & spelled, f"{path}: {keys & spelled}"


def test_no_two_files_share_a_name() -> None:
    """Whoever searches for a file by its name finds one."""
    seen: dict[str, Path] = {}
    for path in files():
        if not path.stem.startswith("__"):
            assert path.stem not in seen, f"{path} and {seen[path.stem]}"
            seen[path.stem] = path


def test_every_rule_file_is_in_the_index() -> None:
    index = (ROOT / "diagnosis" / "rules" / "__init__.py").read_text(encoding="utf-8")
    for path in (ROOT / "diagnosis" / "rules").glob("[!_]*.py"):
        assert f"{path.stem}.find" in index, path


def test_no_file_outgrows_a_readers_patience() -> None:
    for path in files():
        limit = 150 if path.parent.name == "rules" else 300
        assert len(path.read_text(encoding="utf-8").splitlines()) <= limit, path


def test_the_judge_and_the_daemon_ask_for_a_source_by_its_role() -> None:
    """Else a new one would have to be taught to them."""
    for path in files():
        if room(path) in ("diagnosis", "runtime"):
            tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            spelled = {node.value for node in tree if isinstance(node, ast.Constant)}
            assert not spelled & SOURCES.keys(), path
