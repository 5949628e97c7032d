"""NVIDIA Xid errors: what each code means and what cures it, from the table beside this file."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.resources import files

from agent.config.limits import Limits
from agent.config.source_index import GPUS
from agent.diagnosis.cards import off_the_bus
from agent.diagnosis.history import UNCORRECTABLE_XID, History, number
from agent.diagnosis.row import Row
from agent.diagnosis.rules.memory import contains_errors
from agent.model.fault import Finding, Severity
from agent.model.observation import Observation, Signal
from agent.model.remedy import LADDER, Remedy

# NVLink 5 errors are as bad as their own line says; NVML's event has no line, and the table speaks.
_SPEAK_FOR_THEMSELVES = range(144, 151)
# With MIG these stay on the instance that they name; every other error is the whole GPU's.
_ON_INSTANCE = (13, 31, 43, 45, 68, 94)
_UNCORRECTABLE, _CONTAINED, _UNCONTAINED, _TOGETHER_S = UNCORRECTABLE_XID, 94, 95, 60.0
_LOOKED_AGAIN_S = 10.0  # two polls: time enough for one more round of the judge
_WORD_S = 2.0  # so long a GPU that contains errors may take to say whether it contained this one


@dataclass(frozen=True, slots=True)
class Code:
    """A code's row; below ``count`` within the counting window it is a notice."""

    row: Row
    count: int = 1


def _catalog() -> Mapping[int, Code]:
    text = files("agent.diagnosis.rules").joinpath("xid.csv").read_text(encoding="utf-8")
    return {
        int(entry["code"]): Code(
            _row(int(entry["code"]), Severity[entry["severity"].upper()], Remedy(entry["remedy"]), entry["meaning"]),
            int(entry["count"] or 1),
        )
        for entry in csv.DictReader(text.splitlines())
    }


def _row(code: int, severity: Severity, remedy: Remedy, meaning: str) -> Row:
    return Row(f"xid-{code}", severity, remedy, f"Xid {code}: {meaning}", "", _clear(severity, remedy))


def _clear(severity: Severity, remedy: Remedy) -> str:
    if severity is Severity.FATAL or (severity is Severity.DEGRADED and remedy in LADDER):
        return ""
    return "degraded_xid_clear_s" if severity is Severity.DEGRADED else "notice_clear_s"


CATALOG = _catalog()
ROWS = tuple(code.row for code in CATALOG.values())
_NOT_LISTED = "a code that NVIDIA's catalog does not list"


def find(history: History, limits: Limits) -> Iterator[Finding]:
    for observation in history.fresh:
        if observation.signal is Signal.XID and isinstance(observation.value, int):
            yield _finding(history, limits, observation, observation.value)
    for observation in history.uncorrectable.values():
        had_time = _WORD_S <= history.now - observation.arrived <= _WORD_S + _LOOKED_AGAIN_S
        if (
            had_time
            and contains_errors(history.readings.get(observation.pci))
            and not contained(history, observation.pci)
        ):
            yield _finding(history, limits, observation, _UNCORRECTABLE)
    for (signal, _, code), observation in history.past.items():
        known = CATALOG.get(code) if signal is Signal.XID and isinstance(code, int) else None
        if known and isinstance(code, int) and known.row.severity is Severity.FATAL:
            yield from _still(history, limits, _finding(history, limits, observation, code))


def _finding(history: History, limits: Limits, observation: Observation, code: int) -> Finding:
    entry = CATALOG.get(code) or Code(_row(code, Severity.NOTICE, Remedy.CONTACT_SUPPORT, _NOT_LISTED))
    severity, row = entry.row.severity, entry.row
    if code in _SPEAK_FOR_THEMSELVES and (fatal := number(observation, "fatal")) is not None:
        severity = Severity.FATAL if fatal else Severity.NOTICE
        remedy = Remedy.RESET_GPU if fatal else row.remedy
        row = replace(row, severity=severity, remedy=remedy, clear=_clear(severity, remedy))
    elif number(observation, "reboot"):  # its own words ask for more than the table knows
        row = replace(row, remedy=Remedy.REBOOT_NODE)
    elif code == _UNCORRECTABLE and _may_be_contained(history, observation):
        severity = Severity.DEGRADED
    elif entry.count > 1 and history.within(observation.pci, code, limits.xid_count_window_s) < entry.count:
        return replace(row.found(observation, limits, severity=Severity.NOTICE), clear_s=limits.notice_clear_s)
    instance = number(observation, "gpu_instance") if code in _ON_INSTANCE else None
    return replace(
        row.found(observation, limits, severity=severity), instance=None if instance is None else int(instance)
    )


def contained(history: History, pci: str) -> bool:
    """Whether the GPU's last uncorrectable error was kept to its victim: Xid 94 and no 95 about that time."""
    error = history.uncorrectable.get(pci)
    if error is None or not contains_errors(history.readings.get(pci)):
        return False
    near = {
        code: any(abs(at - error.arrived) <= _TOGETHER_S for at in history.times(pci, code))
        for code in (_CONTAINED, _UNCONTAINED)
    }
    return near[_CONTAINED] and not near[_UNCONTAINED]


def _may_be_contained(history: History, observation: Observation) -> bool:
    """It was, or the GPU had no time yet to say so: a node is not withdrawn for want of two seconds."""
    if history.times(observation.pci, _UNCONTAINED) or not contains_errors(history.readings.get(observation.pci)):
        return contained(history, observation.pci)
    return history.now - observation.arrived < _WORD_S or contained(history, observation.pci)


def _still(history: History, limits: Limits, past: Finding) -> Iterator[Finding]:
    """What an old kernel record says, if NVML says today that this GPU is bad, or the bus that it is gone."""
    pci, alive = past.pci, history.alive.get(GPUS)
    if (
        pci in history.lost
        or (history.number(pci, "recovery_action") or 0) > 0
        or (history.number(pci, "ecc_uncorrected_volatile") or 0) > 0
    ):
        yield past
    elif alive and off_the_bus(alive, history.readings, pci):
        yield replace(past, arrived=alive.arrived, confirm_s=limits.missing_confirm_s)
