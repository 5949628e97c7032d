"""``policy``: the rules in force."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict

from agent.commands.setup import configured
from agent.diagnosis.effective import Entry, entries


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="F", help="validated without a cluster or a GPU")
    parser.add_argument("--gpu-model", default="", metavar="X", help="NVML's product name, for overrides by model")
    parser.add_argument("--node-label", default=[], action="append", metavar="K=V", help="for overrides by node label")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true")
    form.add_argument("--markdown", action="store_true", help="the table of agent/diagnosis/README.md")


def run(arguments: argparse.Namespace) -> int:
    labels = dict(label.partition("=")[::2] for label in arguments.node_label)
    listed = list(entries(configured(arguments.config).policy, arguments.gpu_model, labels))
    if arguments.json:
        sys.stdout.write("".join(json.dumps(asdict(entry)) + "\n" for entry in listed))
    else:
        sys.stdout.write(markdown(listed) if arguments.markdown else table(listed))
    return 0


def table(listed: list[Entry]) -> str:
    """For a terminal."""
    lines = [f"{'rule':<24} {'severity':<9} {'remedy':<16} {'count':>5} {'confirm':>8} {'clear':>8}  meaning"]
    for e in listed:
        severity = "disabled" if e.disabled else e.severity
        clear = "latched" if e.clear_s is None else f"{e.clear_s:g} s"
        mark = "*" if e.overridden else " "
        lines.append(
            f"{e.rule:<24} {severity:<9} {e.remedy:<16} {e.count:>5} {e.confirm_s:>6g} s {clear:>8} {mark}{e.meaning}"
        )
    return "\n".join(lines) + "\n"


def markdown(listed: list[Entry]) -> str:
    """The documents' table: each rule a row, the catalogues' codes together by what is done about them."""
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
    lines.append("| `xid-N`, `sxid-N` | notice | none | every other code |")
    return "\n".join(lines) + "\n"
