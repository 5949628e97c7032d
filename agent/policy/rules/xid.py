"""NVIDIA Xid errors: what each code means and what cures it, from the table beside this file."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.resources import files

from agent.config import Limits
from agent.model import Finding, Observation, Remedy, Severity, Signal
from agent.policy.history import History, number
from agent.policy.row import Row
from agent.policy.rules.memory import contains_errors

_CURED_BY_US = (Remedy.RESET_GPU, Remedy.REBOOT_NODE, Remedy.REPLACE_NODE)
# NVLink 5 errors are as bad as their own line says; NVML's event has no line, and the table speaks.
_SPEAK_FOR_THEMSELVES = range(144, 151)
# With MIG these stay on the instance that they name; every other error is the whole GPU's.
_ON_INSTANCE = (13, 31, 43, 45, 68, 94)
_UNCORRECTABLE, _CONTAINED, _UNCONTAINED, _TOGETHER_S = 48, 94, 95, 60.0


@dataclass(frozen=True, slots=True)
class Code:
    """A code's row; below ``count`` within the counting window it is a notice."""

    row: Row
    count: int = 1


def _catalog() -> Mapping[int, Code]:
    text = files("agent.policy.rules").joinpath("xid.csv").read_text(encoding="utf-8")
    return {
        int(entry["code"]): Code(
            _row(int(entry["code"]), Severity[entry["severity"].upper()], Remedy(entry["remedy"]), entry["meaning"]),
            int(entry["count"] or 1),
        )
        for entry in csv.DictReader(text.splitlines())
    }


def _row(code: int, severity: Severity, remedy: Remedy, meaning: str) -> Row:
    if severity is Severity.FATAL or (severity is Severity.DEGRADED and remedy in _CURED_BY_US):
        clear = ""
    else:
        clear = "degraded_xid_clear_s" if severity is Severity.DEGRADED else "notice_clear_s"
    return Row(f"xid-{code}", severity, remedy, f"Xid {code}: {meaning}", "", clear)


CATALOG = _catalog()
ROWS = tuple(code.row for code in CATALOG.values())
_NOT_LISTED = "a code that NVIDIA's catalog does not list"


def find(history: History, limits: Limits) -> Iterator[Finding]:
    for seen in history.fresh:
        if seen.signal is Signal.XID and isinstance(seen.value, int):
            yield _finding(history, limits, seen, seen.value)
    for (pci, code), seen in history.past.items():
        if code in CATALOG and CATALOG[code].row.severity is Severity.FATAL and _present_evidence(history, pci):
            yield _finding(history, limits, seen, code)


def _finding(history: History, limits: Limits, seen: Observation, code: int) -> Finding:
    entry = CATALOG.get(code) or Code(_row(code, Severity.NOTICE, Remedy.CONTACT_SUPPORT, _NOT_LISTED))
    severity, row = entry.row.severity, entry.row
    if code in _SPEAK_FOR_THEMSELVES and (fatal := number(seen, "fatal")) is not None:
        severity = Severity.FATAL if fatal else Severity.NOTICE
        row = _row(code, severity, Remedy.RESET_GPU if fatal else row.remedy, row.meaning.partition(": ")[2])
    elif code == _UNCORRECTABLE and contained(history, seen.pci):
        severity = Severity.DEGRADED
    elif entry.count > 1 and history.within(seen.pci, code, limits.xid_count_window_s) < entry.count:
        return replace(row.found(seen, limits, severity=Severity.NOTICE), clear_s=limits.notice_clear_s)
    instance = number(seen, "gpu_instance") if code in _ON_INSTANCE else None
    return replace(row.found(seen, limits, severity=severity), instance=None if instance is None else int(instance))


def contained(history: History, pci: str) -> bool:
    """Whether the GPU's uncorrectable error of just now was kept to its victim: Xid 94 and no 95 with it."""
    within = {code: history.within(pci, code, _TOGETHER_S) for code in (_CONTAINED, _UNCONTAINED)}
    return bool(contains_errors(history.readings.get(pci)) and within[_CONTAINED] and not within[_UNCONTAINED])


def _present_evidence(history: History, pci: str) -> bool:
    """Whether NVML itself says today that this GPU is bad; old kernel records alone withdraw nothing."""
    return (
        pci in history.lost
        or (history.number(pci, "recovery_action") or 0) > 0
        or (history.number(pci, "ecc_uncorrected_volatile") or 0) > 0
    )
