"""NVIDIA Xid errors: what each code means and what cures it, from the table beside this file."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.resources import files

from agent.config.limits import Limits
from agent.config.source_index import GPUS, KERNEL_LOG, SECOND_WITNESS, TRACE
from agent.diagnosis import nvlink4, nvlink5
from agent.diagnosis.cards import off_the_bus
from agent.diagnosis.history import NVLINK4_XID, NVLINK5_XIDS, UNCORRECTABLE_XID, History, number
from agent.diagnosis.row import Row, code_clear
from agent.diagnosis.rules import recovery
from agent.diagnosis.second_word import (
    contained,
    contains_errors,
    is_due,
    may_be_contained,
    may_only_drain,
    should_have_come,
)
from agent.model.fault import Finding, Severity
from agent.model.observation import Observation, Signal
from agent.model.remedy import Remedy

# With MIG these stay on the instance that they name; every other error is the whole GPU's.
_ON_INSTANCE = (13, 31, 43, 45, 68, 94)
_TOGETHER_S = 60.0


@dataclass(frozen=True, slots=True)
class Code:
    """A code's row; below ``count`` within the counting window it is a notice."""

    row: Row
    count: int = 1


def _catalog() -> Mapping[int, Code]:
    text = files("agent.diagnosis.rules").joinpath("xid.csv").read_text(encoding="utf-8")
    codes = {}
    for entry in csv.DictReader(text.splitlines()):
        code, count = int(entry["code"]), int(entry["count"] or 1)
        row = _row(code, Severity[entry["severity"].upper()], Remedy(entry["remedy"]), entry["meaning"], count)
        codes[code] = Code(row, count)
    return codes


def _row(code: int, severity: Severity, remedy: Remedy, meaning: str, count: int = 1) -> Row:
    return Row(
        f"xid-{code}",
        severity,
        remedy,
        f"Xid {code}: {meaning}",
        clear=code_clear(severity, remedy),
        limits=("xid_count_window_s",) if count > 1 else (),
        witnesses=(GPUS, KERNEL_LOG, SECOND_WITNESS, TRACE),
    )


CATALOG = _catalog()
ROWS = tuple(code.row for code in CATALOG.values())


def unlisted(code: int) -> Row:
    return _row(code, Severity.NOTICE, Remedy.CONTACT_SUPPORT, "a code that NVIDIA's catalog does not list")


def find(history: History, limits: Limits) -> Iterator[Finding]:
    fresh = (o for o in history.fresh if o.signal is Signal.XID and not recovery.tells(history, o))
    for observation in fresh:
        if isinstance(observation.value, int):
            yield _finding(history, limits, observation, observation.value)
    for observation in history.uncorrectable.values():
        if (
            should_have_come(history, observation)
            and contains_errors(history.readings.get(observation.pci))
            and not contained(history, observation.pci)
        ):
            yield _finding(history, limits, observation, UNCORRECTABLE_XID)
    for observation in history.awaiting.values():
        if isinstance(observation.value, int) and should_have_come(history, observation):
            yield _finding(history, limits, observation, observation.value)
    for (signal, _, code), observation in history.past.items():
        known = CATALOG.get(code) if signal is Signal.XID and isinstance(code, int) else None
        if known and isinstance(code, int) and known.row.severity is Severity.FATAL:
            finding = _finding(history, limits, observation, code)
            if finding.severity > Severity.NOTICE:
                yield from _still(history, limits, finding)


def _finding(history: History, limits: Limits, observation: Observation, code: int) -> Finding:
    entry = CATALOG.get(code) or Code(unlisted(code))
    observation = history.with_details(observation, code)
    severity, row = entry.row.severity, _with_place(entry.row, observation)
    if code == NVLINK4_XID or code in NVLINK5_XIDS:
        row = _of_a_link(history, observation, code, row)
        severity = Severity.DEGRADED if may_only_drain(history, observation, row) else row.severity
    elif number(observation, "reboot"):  # its own words ask for more than the table knows
        row = replace(row, remedy=Remedy.REBOOT_NODE)
    elif code == UNCORRECTABLE_XID and may_be_contained(history, observation):
        severity = Severity.DEGRADED
    elif entry.count > 1 and history.within(observation.pci, code, limits.xid_count_window_s) < entry.count:
        return replace(row.found(observation, limits, severity=Severity.NOTICE), clear_s=limits.notice_clear_s)
    instance = number(observation, "gpu_instance") if code in _ON_INSTANCE else None
    return replace(
        row.found(observation, limits, severity=severity), instance=None if instance is None else int(instance)
    )


def _with_place(row: Row, xid: Observation) -> Row:
    """With where on the GPU a program failed, which NVIDIA's support asks for; or with what the driver asks for."""
    values = xid.values
    place = f"at {values['place']}" + (f", SM {values['sm']}" if "sm" in values else "") if "place" in values else ""
    if "engine" in values:
        place = f"by engine {values['engine']}: {values.get('access')}"
    return replace(row, meaning=", ".join(filter(None, (row.meaning, place, recovery.told(xid)))))


def _of_a_link(history: History, xid: Observation, code: int, row: Row) -> Row:
    """As the details say, for which a witness that tells none waits a moment; the table speaks where none come."""
    if code == NVLINK4_XID:
        said = nvlink4.judged(history, xid, row, _fatal_beside(history, xid))
    else:
        said = nvlink5.judged(xid, code, row)
    if said or xid.source == KERNEL_LOG or not is_due(history, xid):
        return said or row
    return row.said(Severity.NOTICE, row.remedy, f"{row.meaning} (the kernel's line on it is waited for)")


def _fatal_beside(history: History, xid: Observation) -> bool:
    """Whether the GPU had another Xid about that time that the catalogue calls fatal."""
    fatal = (code for code, entry in CATALOG.items() if entry.row.severity is Severity.FATAL and code != xid.value)
    return any(abs(at - xid.arrived) <= _TOGETHER_S for code in fatal for at in history.times(xid.pci, code))


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
