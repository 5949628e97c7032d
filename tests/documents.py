"""The documents as tests read them, and ``python -m tests.documents``, which writes each generated table anew."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from pydantic import BaseModel

from agent.commands.policy import markdown
from agent.config.limits import Limits, Override
from agent.config.settings import Config
from agent.diagnosis.effective import entries, parts
from agent.model.fault import Status, Verdict
from agent.model.remedy import Remedy
from agent.status.metrics import families
from agent.status.snapshot import Snapshot

ROOT = Path(__file__).parents[1]
_ROOMS = ("agent", "daemonset", "tests")
_PATHS = (*ROOT.glob("*.md"), *(path for room in _ROOMS for path in (ROOT / room).rglob("*.md")))
DOCUMENTS = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in sorted(_PATHS)}
INSTALLING, ON_CALL = "daemonset/README.md", "daemonset/monitoring/README.md"
MOVED = "daemonset/guide/my-pod-was-moved.md"


def anchors(text: str) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def blocks(kind: str, text: str) -> list[str]:
    """What stands in its blocks of this language."""
    return re.findall(rf"^ *```{kind}\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)


def shell_blocks(document: str, chapter: str = "") -> list[list[str]]:
    """The shell commands of a document, or of one chapter of it, block by block."""
    text = DOCUMENTS[document]
    if chapter:
        text = text.partition(f"\n## {chapter}\n")[2].partition("\n## ")[0]
    return [block.splitlines() for block in blocks("sh", text)]


def label_names(family: Metric) -> tuple[str, ...]:
    """prometheus_client tells them of samples only, and a family may have none."""
    assert isinstance(family, CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily)
    return family._labelnames


def stored_names(family: Metric) -> list[str]:
    """Its names as Prometheus stores them."""
    ends = {"counter": ["_total"], "histogram": ["_bucket", "_count", "_sum"]}.get(family.type, [""])
    return [f"{family.name}{end}" for end in ends]


def rules_table() -> str:
    return markdown(list(entries(Limits(), "", {})), list(parts(Limits(), "", {}))).rstrip()


def metrics_table() -> str:
    rows = ["| metric | labels | what |", "|---|---|---|"]
    for family in families(Snapshot("", "", Verdict(0, Status.HEALTHY, Remedy.NONE))):
        name = family.name if isinstance(family, HistogramMetricFamily) else stored_names(family)[0]
        labels = ", ".join(label_names(family))
        rows.append(f"| `{name}` | {labels} | {_cell(family.documentation)} |")
    return "\n".join(rows)


def settings_table() -> str:
    rows = ["| setting | default | what |", "|---|---|---|"]
    rows += [f"| `{name}` | {default} | {_cell(what)} |" for name, default, what in settings(Config, "")]
    return "\n".join(rows)


def settings(section: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str]]:
    """Each setting's name, default and reason, in the order of agent/config/settings.py."""
    said = _said(section)
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from settings(inner, f"{prefix}{name}.")
        elif Override in get_args(inner):
            yield f"{prefix}{name}", "none", said[name]
            yield from settings(Override, f"{prefix}{name}[].")
        else:
            default = "required" if field.is_required() else _default(field.default)
            yield f"{prefix}{name}", default, said[name]


def _said(section: type[BaseModel]) -> dict[str, str]:
    """A field's own comment, else the next docstring below it: one may speak for several fields."""
    source = Path(sys.modules[section.__module__].__file__ or "").read_text(encoding="utf-8")
    (found,) = (
        node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == section.__name__
    )
    said: dict[str, str] = {}
    waiting: list[str] = []
    for node in found.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            comment = source.splitlines()[(node.end_lineno or 0) - 1].partition("  # ")[2]
            if comment:
                said[node.target.id] = comment
            else:
                waiting.append(node.target.id)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            said |= dict.fromkeys(waiting, " ".join(str(node.value.value).split()))
            waiting = []
    return {name: said.get(name, "") for name in section.model_fields}


def _default(value: object) -> str:
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, tuple):
        return ", ".join(f"`{one}`" for one in value) or "none"
    return f"`{value}`" if value != "" else "empty"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def renewed(document: str) -> str:
    """The document with its tables as they should be."""
    text = DOCUMENTS[document]
    for name, (home, table) in TABLES.items():
        if home == document:
            begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
            before, _, rest = text.partition(begin)
            _, found, after = rest.partition(end)
            assert found, f"{document} lacks {begin} … {end}"
            text = f"{before}{begin}\n\n{table()}\n\n{end}{after}"
    return text


TABLES = {
    "rules": ("agent/diagnosis/README.md", rules_table),
    "metrics": (ON_CALL, metrics_table),
    "settings": ("daemonset/base/README.md", settings_table),
}

if __name__ == "__main__":
    for name in DOCUMENTS:
        (ROOT / name).write_text(renewed(name), encoding="utf-8")
    sys.exit(0)
