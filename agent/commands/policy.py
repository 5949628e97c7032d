"""``policy``: the rules in force."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from dataclasses import asdict

from agent.commands.setup import configured
from agent.config.limits import Override
from agent.config.settings import Config, Mode
from agent.diagnosis.advice import by_hand, by_itself, clears
from agent.diagnosis.effective import Entry, entries, parts
from agent.diagnosis.rules import ROWS
from agent.model.errors import UsageError
from agent.model.fault import Evidence, Fault, Finding, Severity
from agent.model.remedy import Remedy

_BY_CLASSES = "xid-74"
_OTHERS = f"also {', '.join(name for name in Override.model_fields if name not in ('rule', 'severity'))}"


EXAMPLES = (
    ("gpu-health-agent policy --severity fatal", "what withdraws a node"),
    ("gpu-health-agent policy xid-79", "everything about one rule"),
    ("gpu-health-agent policy xid-149", "and what a line's details make of it"),
    ("gpu-health-agent policy --config config.yaml --gpu-model 'NVIDIA L40S'", "with the overrides for these GPUs"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    rule = parser.add_argument("rule", nargs="?", metavar="RULE", help="everything about this one")
    rule.completer = lambda **_: list(ROWS)  # type: ignore[attr-defined]  # argcomplete's way
    parser.add_argument("--severity", choices=[s.name.lower() for s in Severity], help="only rules of this severity")
    parser.add_argument("--config", metavar="F", help="validated without a cluster or a GPU")
    parser.add_argument("--gpu-model", default="", metavar="X", help="NVML's product name, for overrides by model")
    parser.add_argument("--node-label", default=[], action="append", metavar="K=V", help="for overrides by node label")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object a line and rule")
    form.add_argument("--markdown", action="store_true", help="the table of agent/diagnosis/README.md")


def run(arguments: argparse.Namespace) -> int:
    labels = dict(label.partition("=")[::2] for label in arguments.node_label)
    config = configured(arguments.config)
    of = (config.policy, arguments.gpu_model, labels)
    listed, within = list(entries(*of, asked=arguments.rule or "")), list(parts(*of))
    if arguments.rule:
        listed = [entry for entry in listed if entry.rule == arguments.rule]
        within = [entry for entry in within if entry.rule.partition(",")[0] == arguments.rule]
        if not listed:
            raise UsageError(f"no rule {arguments.rule!r}: 'gpu-health-agent policy' without a name lists all of them")
    if arguments.severity:
        listed, within = ([e for e in some if e.severity == arguments.severity] for some in (listed, within))
    if arguments.json:
        shown = [*listed, *within] if arguments.rule else listed
        sys.stdout.write("".join(json.dumps(asdict(entry)) + "\n" for entry in shown))
    elif arguments.markdown:
        sys.stdout.write(markdown(listed, within))
    elif arguments.rule:
        sys.stdout.write("\n".join(page(entry, config) for entry in listed) + (table(within) if within else ""))
    else:
        sys.stdout.write(table(listed))
    return 0


def page(entry: Entry, config: Config) -> str:
    """One rule: what it means, when it begins and ends, whose word it is, what the agent does and what a person."""
    fault = Fault(_example(entry), 0.0, 0.0, 0.0, uuid="UUID" if "gpu" in entry.scope else "")
    acts: dict[str, list[str]] = {}  # what is done → the modes in which it is
    for mode in Mode:
        effect = None if mode is Mode.OBSERVE else config.policy.degraded_effect
        acts.setdefault(by_itself(fault, mode, effect).replace(f"mode {mode}: ", ""), []).append(mode)
    settings = (f"policy.{name} {_value(value)}" for name, value in entry.settings.items())
    where = " or ".join("the node" if one == "node" else "a GPU" for one in entry.scope)
    rows = (
        ("what", entry.meaning),
        ("of", f"{where}, by {', '.join(entry.witnesses)}"),
        ("readings", ", ".join(entry.signals)),
        ("begins", _begins(entry)),
        ("settings", ", ".join(settings)),
        ("joins", entry.explained_by and f"{' or '.join(entry.explained_by)}, where that stands"),
        ("clears by", clears(fault.finding, config.policy)),
        *(("by itself", f"{' or '.join(modes)}: {done}") for done, modes in acts.items()),
        ("by hand", by_hand(fault)),
        ("override", f"policy: {{overrides: [{{rule: {entry.rule}, severity: notice}}]}}; {_OTHERS}"),
    )
    head = "disabled" if entry.disabled else f"{entry.severity}, remedy {entry.remedy}"
    title = f"{entry.rule}: {head}{', by an override' if entry.overridden else ''}"
    return "".join(f"{line}\n" for line in (title, *(f"  {name + ':':<11}{text}" for name, text in rows if text)))


def _value(value: object) -> str:
    if value is None:
        return "unset"
    return f"{value:g}" if isinstance(value, float) else str(value).lower()


def _begins(entry: Entry) -> str:
    if entry.count > 1:
        return f"when it is seen {entry.count} times within the window; before that it is a notice"
    if entry.confirm_s:
        return f"when it has lasted {entry.confirm_s:g} s"
    return "when it passes what its settings say" if entry.measured else "when it is first seen"


def _example(entry: Entry) -> Finding:
    """A finding of this rule, by which a fault is told as ``explain`` tells it."""
    return Finding(
        rule=entry.rule,
        pci="ADDRESS" if "gpu" in entry.scope else "",
        severity=Severity[entry.severity.upper()],
        remedy=Remedy(entry.remedy),
        message=entry.meaning,
        evidence=Evidence(0.0, "", ""),
        arrived=0.0,
        witness="" if len(entry.witnesses) > 1 else entry.witnesses[0],
        clear_s=entry.clear_s,
    )


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
