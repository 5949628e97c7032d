"""NVIDIA Xid errors: what each code means and what cures it, from the table beside this file."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files

from agent.config import Limits
from agent.model import Evidence, Finding, Observation, Remedy, Severity, Signal
from agent.policy.history import History

_CURED_BY_US = (Remedy.RESET_GPU, Remedy.REBOOT_NODE, Remedy.REPLACE_NODE)
# Two context-switch timeouts an hour are no longer one stuck kernel (AWS repairs at one, NVIDIA's plugin at none).
_COUNTED = {109: 2}


@dataclass(frozen=True, slots=True)
class Code:
    severity: Severity
    remedy: Remedy
    meaning: str


def _catalog() -> Mapping[int, Code]:
    text = files("agent.policy.rules").joinpath("xid.csv").read_text(encoding="utf-8")
    return {
        int(row["code"]): Code(Severity[row["severity"].upper()], Remedy(row["remedy"]), row["meaning"])
        for row in csv.DictReader(text.splitlines())
    }


CATALOG = _catalog()
_UNKNOWN = Code(Severity.NOTICE, Remedy.CONTACT_SUPPORT, "a code that NVIDIA's catalog does not list")


def find(history: History, limits: Limits) -> Iterator[Finding]:
    for seen in history.fresh:
        if seen.signal is Signal.XID and isinstance(seen.value, int):
            yield _finding(history, limits, seen, seen.value)
    for (pci, code), seen in history.past.items():
        if CATALOG.get(code, _UNKNOWN).severity is Severity.FATAL and _present_evidence(history, pci):
            yield _finding(history, limits, seen, code)


def _finding(history: History, limits: Limits, seen: Observation, code: int) -> Finding:
    entry = CATALOG.get(code, _UNKNOWN)
    severity = entry.severity
    if code in _COUNTED and history.within(seen.pci, code, limits.xid_count_window_s) >= _COUNTED[code]:
        severity = Severity.DEGRADED
    clear_s = limits.notice_clear_s
    if severity is Severity.FATAL or (severity is Severity.DEGRADED and entry.remedy in _CURED_BY_US):
        latched = True
    else:
        latched = False
        if severity is Severity.DEGRADED:
            clear_s = limits.degraded_xid_clear_s
    return Finding(
        rule=f"xid-{code}",
        pci=seen.pci,
        severity=severity,
        remedy=entry.remedy,
        message=f"Xid {code}: {entry.meaning}",
        evidence=Evidence(seen.at, seen.source, seen.raw),
        seen=seen.seen,
        witness=seen.source,
        clear_s=None if latched else clear_s,
    )


def _present_evidence(history: History, pci: str) -> bool:
    """Whether NVML itself says today that this GPU is bad; old kernel records alone withdraw nothing."""
    return (
        pci in history.lost
        or (history.number(pci, "recovery_action") or 0) > 0
        or (history.number(pci, "ecc_uncorrected_volatile") or 0) > 0
    )
