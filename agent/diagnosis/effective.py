"""The policy as it is in force: every rule with the operator's overrides, for one GPU model and node."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches

from agent.config.limits import Limits
from agent.diagnosis import nvlink4, nvlink5
from agent.diagnosis.correlate import EXPLAINED_BY
from agent.diagnosis.history import ACTION_XID, NVLINK4_XID, NVLINK5_XIDS
from agent.diagnosis.overrides import in_scope
from agent.diagnosis.row import Row
from agent.diagnosis.rules import ROWS, dcgm, kernel, xid
from agent.diagnosis.rules.recovery import ROW as RECOVERY

_ACTION = f"xid-{ACTION_XID}"
_CODE = re.compile(r"(xid|sxid|dcgm)-(0|[1-9]\d{0,8})")  # has a rule, whether a table lists it or not
_COUNTS = {code.row.rule: code.count for code in xid.CATALOG.values()}
_MADE: tuple[Callable[[int], Row], ...] = (xid.unlisted, kernel.unlisted, dcgm.unlisted)
_UNLISTED = {made(0).rule.partition("-")[0]: made for made in _MADE}


@dataclass(frozen=True, slots=True)
class Entry:
    """One rule in force; times in seconds, ``clear_s`` None is latched until a proved cure."""

    rule: str
    severity: str
    remedy: str
    count: int
    confirm_s: float
    clear_s: float | None
    meaning: str
    disabled: bool
    overridden: bool
    settings: Mapping[str, object]  # that it goes by, under ``policy``: name → value
    measured: bool  # some of them are limits of what is measured, or of how often
    witnesses: tuple[str, ...]
    signals: tuple[str, ...]
    scope: tuple[str, ...]
    explained_by: tuple[str, ...]  # the rules of whose faults it is a symptom


def wrong_override(limits: Limits) -> str:
    """What is wrong with the overrides, in a sentence; empty if nothing is."""
    for number, override in enumerate(limits.overrides):
        if override.count and override.rule.partition("-")[0] != "xid":
            return f"policy.overrides.{number}.count: only Xids are counted, not {override.rule}: leave it out"
        if override.rule == _ACTION and not override.disabled:
            why = f"what an Xid {ACTION_XID} asks for is judged as {RECOVERY.rule}: override that"
            return f"policy.overrides.{number}.rule: {why}; of {_ACTION} only disabled is obeyed"
        if override.rule in ROWS or _CODE.fullmatch(override.rule):
            continue
        near = get_close_matches(override.rule, ROWS, n=1)
        hint = f"; did you mean {near[0]}?" if near else "; see 'gpu-health-agent policy' for all rules"
        return f"policy.overrides.{number}.rule: no rule {override.rule!r}{hint}"
    return ""


def entries(limits: Limits, model: str, labels: Mapping[str, str], asked: str = "") -> Iterator[Entry]:
    """Every rule that has a row, and each code without one that an override names or that is ``asked`` for."""
    named = {*(override.rule for override in limits.overrides), asked}
    unlisted = (found for rule in sorted(named - ROWS.keys()) if (found := _CODE.fullmatch(rule)))
    for row in (*ROWS.values(), *(_UNLISTED[found[1]](int(found[2])) for found in unlisted)):
        yield _entry(row, limits, model, labels)


def parts(limits: Limits, model: str, labels: Mapping[str, str]) -> Iterator[Entry]:
    """What the details of a line make of a link's Xid: ``xid-74, register 1, bits 1, 20``."""
    for code in (NVLINK4_XID, *NVLINK5_XIDS):
        row = xid.CATALOG[code].row
        for name, part, count in nvlink4.listed(row) if code == NVLINK4_XID else nvlink5.listed(code, row):
            yield replace(_entry(part, limits, model, labels), rule=f"{row.rule}, {name}", count=count)


def _entry(row: Row, limits: Limits, model: str, labels: Mapping[str, str]) -> Entry:
    entry = asdict(
        Entry(
            row.rule,
            row.severity.name.lower(),
            row.remedy,
            _COUNTS.get(row.rule, 1),
            row.confirm_s(limits),
            row.clear_s(limits),
            row.meaning,
            disabled=False,
            overridden=False,
            settings={name: getattr(limits, name) for name in row.settings},
            measured=bool(row.limits),
            witnesses=row.witnesses,
            signals=row.signals,
            scope=row.scope,
            explained_by=EXPLAINED_BY.get(row.rule, ()),
        )
    )
    for override in limits.overrides:
        if override.rule == row.rule and in_scope(override, model, labels):
            given = override.model_dump(
                include={"severity", "remedy", "count", "confirm_s", "clear_s"}, exclude_none=True
            )
            entry |= {**given, "disabled": override.disabled, "overridden": True}
    entry["clear_s"] = None if entry["clear_s"] == "latched" else entry["clear_s"]
    return Entry(**entry)
