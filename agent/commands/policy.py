"""``policy``: the rules in force."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from dataclasses import asdict

from agent.commands.setup import configured
from agent.diagnosis.effective import Entry, entries, parts
from agent.model.errors import UsageError

_BY_CLASSES = "xid-74"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("rule", nargs="?", metavar="RULE", help="only this one, with what details make of it: xid-74")
    parser.add_argument("--config", metavar="F", help="validated without a cluster or a GPU")
    parser.add_argument("--gpu-model", default="", metavar="X", help="NVML's product name, for overrides by model")
    parser.add_argument("--node-label", default=[], action="append", metavar="K=V", help="for overrides by node label")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true")
    form.add_argument("--markdown", action="store_true", help="the table of agent/diagnosis/README.md")


def run(arguments: argparse.Namespace) -> int:
    labels = dict(label.partition("=")[::2] for label in arguments.node_label)
    asked = (configured(arguments.config).policy, arguments.gpu_model, labels)
    listed, within = list(entries(*asked)), list(parts(*asked))
    if arguments.rule:
        listed = [entry for entry in (*listed, *within) if entry.rule.partition(",")[0] == arguments.rule]
        if not listed:
            raise UsageError(f"no rule {arguments.rule!r}: 'gpu-health-agent policy' without a name lists all of them")
    if arguments.json:
        sys.stdout.write("".join(json.dumps(asdict(entry)) + "\n" for entry in listed))
    else:
        sys.stdout.write(markdown(listed, within) if arguments.markdown else table(listed))
    return 0


def table(listed: list[Entry]) -> str:
    """For a terminal."""
    width = max(24, *(len(e.rule) for e in listed))
    lines = [f"{'rule':<{width}} {'severity':<9} {'remedy':<16} {'count':>5} {'confirm':>8} {'clear':>8}  meaning"]
    for e in listed:
        severity = "disabled" if e.disabled else e.severity
        clear = "latched" if e.clear_s is None else f"{e.clear_s:g} s"
        mark = "*" if e.overridden else " "
        times = f"{e.count:>5} {e.confirm_s:>6g} s {clear:>8}"
        lines.append(f"{e.rule:<{width}} {severity:<9} {e.remedy:<16} {times} {mark}{e.meaning}")
    return "\n".join(lines) + "\n"


def markdown(listed: list[Entry], within: list[Entry]) -> str:
    """The documents' table: each rule a row, the catalogues' codes together by what is done about them.

    ``within``: what details make of a code. The classes of Xid 74 are a row each, NVIDIA's rows of the others together.
    """
    lines = ["| rule | severity | remedy | what |", "|---|---|---|---|"]
    families: dict[tuple[str, str, str], list[str]] = {}
    for e in listed:
        family, _, code = e.rule.partition("-")
        if code.isdigit():
            families.setdefault((family, e.severity, e.remedy), []).append(code)
        else:
            lines.append(f"| `{e.rule}` | {e.severity} | {e.remedy} | {e.meaning} |")
    for (family, severity, remedy), codes in families.items():
        if severity != "notice":
            lines.append(f"| `{family}-N` | {severity} | {remedy} | {', '.join(codes)} |")
    for part in within:
        rule, _, name = part.rule.partition(", ")
        if rule == _BY_CLASSES:
            times = "" if part.count == 1 else f"; below {part.count} a day on one link a notice"
            lines.append(f"| `{rule}`, {name} | {part.severity} | {part.remedy} | {part.meaning}{times} |")
    by_rows = Counter((part.severity, part.remedy) for part in within if not part.rule.startswith(_BY_CLASSES))
    for (severity, remedy), rows in by_rows.items():
        rule, what = f"`xid-144` to `xid-150`, {rows} of NVIDIA's rows", "`policy xid-149` lists such rows"
        lines.append(f"| {rule} | {severity} | {remedy} | {what} |")
    lines.append("| `xid-N`, `sxid-N` | notice | none | every other code |")
    return "\n".join(lines) + "\n"
