"""What DCGM says of its own: incidents of its health check, GPUs it no longer lists, and values unlike NVML's.

It is the second witness: where NVML or the kernel log shows the same, the incident joins that fault. What DCGM draws
from Xids is none here: our catalogue judges Xids, and DCGM keeps its word on them for ever, even after a reset.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.resources import files

from agent.config.limits import Limits
from agent.config.source_index import SECOND_WITNESS
from agent.diagnosis.history import History, number
from agent.diagnosis.row import TABLE, Row
from agent.model.fault import Finding, Severity
from agent.model.observation import Observation
from agent.model.remedy import Remedy

_NOTICE, _DEGRADED, _FATAL = Severity.NOTICE, Severity.DEGRADED, Severity.FATAL
_NONE, _ASK, _RESET = Remedy.NONE, Remedy.CONTACT_SUPPORT, Remedy.RESET_GPU
# What NVML reads itself, its own rule calls fatal: DCGM's word alone withdraws a node only where NVML can't read it.
_NVML_READS = {
    4: "ecc_uncorrected_volatile",
    80: "remapped_rows_failure",
    118: "sram_threshold_exceeded",
    **dict.fromkeys((125, 126), "recovery_action"),
}


@dataclass(frozen=True, slots=True)
class Code:
    """What an incident's code (DCGM_FR_*) means to us, and the faults whose symptom it is, the best first."""

    row: Row
    explained_by: tuple[str, ...] = ()


def _code(number: int, severity: Severity, remedy: Remedy, meaning: str, explained_by: str = "") -> Code:
    row = Row(f"dcgm-{number}", severity, remedy, f"DCGM: {meaning}", "flag_confirm_s", "dcgm_clear_s")
    return Code(row, tuple(explained_by.split()))


def _catalog() -> Mapping[int, Code]:
    """dcgm_errors.h. 12, clocks held down for power, is left out: any full load does that. Where NVML's rules judge the
    same quantity by rates and shares of time (3, 10, 13, 70), DCGM's own limits are a notice."""
    text = files("agent.diagnosis.rules").joinpath("dcgm.csv").read_text(encoding="utf-8")
    return {
        int(row["code"]): _code(
            int(row["code"]),
            Severity[row["severity"].upper()],
            Remedy(row["remedy"]),
            row["meaning"],
            row["explained_by"],
        )
        for row in csv.DictReader(text.splitlines())
    }


_CODES = _catalog()
# dcgm_errors.h's own severities, for a code that is not listed: MONITOR, ISOLATE, TRIAGE, CONFIG, RESET.
_BY_SEVERITY = {
    1: (_NOTICE, _ASK),
    2: (_DEGRADED, _ASK),
    4: (_DEGRADED, _ASK),
    5: (_NOTICE, _NONE),
    6: (_DEGRADED, _RESET),
}
ROWS = tuple(code.row for code in _CODES.values())
DROPPED = TABLE["dcgm-dropped"]
DISAGREES = TABLE["dcgm-disagrees"]
ELSEWHERE = TABLE["dcgm-elsewhere"]
EXPLAINED_BY: Mapping[str, tuple[str, ...]] = {
    **{code.row.rule: code.explained_by for code in _CODES.values()},
    DROPPED.rule: ("xid-79", "gpu-lost", "gpu-missing", "gpu-reset-required"),
}
# Quantities that both read and that stand still on a healthy GPU.
_COMPARED = (
    "ecc_mode",
    "ecc_mode_pending",
    "ecc_corrected_volatile",
    "ecc_uncorrected_volatile",
    "ecc_corrected_aggregate",
    "ecc_uncorrected_aggregate",
    "sram_threshold_exceeded",
    "retired_pages_sbe",
    "retired_pages_dbe",
    "retired_pages_pending",
    "remapped_rows_uncorrected",
    "remapped_rows_corrected",
    "remapped_rows_failure",
    "remapped_rows_pending",
    "memory_unrepairable",
    "recovery_action",
    "pcie_replays",
    "pcie_max_width",
    "pcie_width",
)


def find(history: History, limits: Limits) -> Iterator[Finding]:
    alive = history.alive.get(SECOND_WITNESS)
    if history.elsewhere:
        if alive:
            yield ELSEWHERE.found(alive, limits, pci="")
        return
    for incident in history.incidents.values():
        if isinstance(incident.value, int) and "xid" not in incident.values and incident.value != 12:  # any full load
            yield _incident(history, limits, incident, incident.value)
    for pci, reading in history.witnessed.items() if alive else ():
        if alive and alive.arrived - reading.arrived > limits.missing_confirm_s:
            nvml = history.readings.get(pci)
            well = nvml is not None and pci not in history.lost and history.now - nvml.arrived <= limits.silent_s
            message = f"{DROPPED.meaning}{', and NVML reads it' if well else ''}"
            yield DROPPED.found(alive, limits, message, severity=_NOTICE if well else None, pci=pci)
    differences: dict[str, list[str]] = {}
    for pci, signal, ours, theirs in disagreements(history, limits.silent_s):
        differences.setdefault(pci, []).append(f"{signal}: {theirs:g} by DCGM, {ours:g} by NVML")
    for pci, each in differences.items():
        found = DISAGREES.found(history.witnessed[pci], limits)
        yield replace(found, evidence=replace(found.evidence, raw="; ".join(each)[:500]))


def _incident(history: History, limits: Limits, observation: Observation, code: int) -> Finding:
    known = _CODES.get(code)
    if known:
        row, severity = known.row, known.row.severity
        nvml_reads = history.number(observation.pci, _NVML_READS.get(code, "")) is not None
        if severity is _FATAL and (nvml_reads or not observation.pci):
            severity = _DEGRADED
    else:
        severity, remedy = _BY_SEVERITY.get(int(number(observation, "severity") or 0), (_DEGRADED, _ASK))
        row = _code(code, severity, remedy, "an incident that this agent has no word for").row
    instance = number(observation, "gpu_instance")
    found = row.found(observation, limits, row.meaning, severity=severity)
    return replace(found, instance=None if instance is None else int(instance))


def disagreements(history: History, silent_s: float) -> Iterator[tuple[str, str, float, float]]:
    """GPU, signal, NVML's value and DCGM's, where both are of now, NVML's stands still, and they are not the same."""
    for pci, second in history.witnessed.items() if not history.elsewhere else ():
        first, before = history.readings.get(pci), history.before.get(pci)
        if first is None or pci in history.lost or history.now - min(first.arrived, second.arrived) > silent_s:
            continue
        for signal in _COMPARED:
            ours, theirs = number(first, signal), number(second, signal)
            if None not in (ours, theirs) and ours != theirs and number(before, signal) == ours:
                yield pci, signal, float(ours or 0), float(theirs or 0)
