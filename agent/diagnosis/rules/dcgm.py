"""What DCGM says of its own: incidents of its health check, and GPUs that it no longer lists.

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
_WARN, _MONITOR = 10, 1  # DCGM_HEALTH_RESULT_WARN; dcgm_errors.h's severity of what is only to be watched


@dataclass(frozen=True, slots=True)
class Code:
    """What an incident's code (DCGM_FR_*) means to us, and the faults whose symptom it is, the best first."""

    row: Row
    nvml_reads: str = ""  # the signal by which NVML says the same of a GPU, which then decides
    explained_by: tuple[str, ...] = ()


def _row(number: int, severity: Severity, remedy: Remedy, meaning: str) -> Row:
    return Row(
        f"dcgm-{number}",
        severity,
        remedy,
        f"DCGM: {meaning}",
        "flag_confirm_s",
        "dcgm_clear_s",
        witnesses=(SECOND_WITNESS,),
        scope=("gpu", "node"),
    )


def _catalog() -> Mapping[int, Code]:
    """dcgm_errors.h. 12, clocks held down for power, is left out: any full load does that. Where NVML's rules judge the
    same quantity by rates and shares of time (3, 10, 13, 70), DCGM's own limits are a notice."""
    text = files("agent.diagnosis.rules").joinpath("dcgm.csv").read_text(encoding="utf-8")
    return {
        int(row["code"]): Code(
            _row(int(row["code"]), Severity[row["severity"].upper()], Remedy(row["remedy"]), row["meaning"]),
            row["nvml_reads"],
            tuple(row["explained_by"].split()),
        )
        for row in csv.DictReader(text.splitlines())
    }


CODES = _catalog()
# dcgm_errors.h's own severities, for a code that is not listed: MONITOR, ISOLATE, TRIAGE, CONFIG, RESET.
_BY_SEVERITY = {
    1: (_NOTICE, _ASK),
    2: (_DEGRADED, _ASK),
    4: (_DEGRADED, _ASK),
    5: (_NOTICE, _NONE),
    6: (_DEGRADED, _RESET),
}
ROWS = tuple(code.row for code in CODES.values())
DROPPED = TABLE["dcgm-dropped"]
ELSEWHERE = TABLE["dcgm-elsewhere"]
MISMATCH = TABLE["dcgm-mismatch"]
NO_HEALTH = TABLE["dcgm-no-health"]
EXPLAINED_BY: Mapping[str, tuple[str, ...]] = {
    **{code.row.rule: code.explained_by for code in CODES.values()},
    DROPPED.rule: ("xid-79", "gpu-lost", "gpu-missing", "gpu-reset-required"),
}


def unlisted(code: int, given: int = 0) -> Row:
    """As grave as the engine says of it."""
    severity, remedy = _BY_SEVERITY.get(given, (_DEGRADED, _ASK))
    return _row(code, severity, remedy, "an incident that this agent does not know")


def find(history: History, limits: Limits) -> Iterator[Finding]:
    alive = history.alive.get(SECOND_WITNESS)
    if history.elsewhere:
        if alive:
            yield ELSEWHERE.found(alive, limits, pci="")
        return
    if alive:
        yield from _of_the_engine(alive, limits)
    for incident in history.incidents.values():
        if isinstance(incident.value, int) and "xid" not in incident.values and incident.value != 12:  # any full load
            yield _incident(history, limits, incident, incident.value)
    for pci, reading in history.witnessed.items() if alive else ():
        if alive and alive.arrived - reading.arrived > limits.missing_confirm_s:
            nvml = history.readings.get(pci)
            well = nvml is not None and pci not in history.lost and history.now - nvml.arrived <= limits.silent_s
            message = f"{DROPPED.meaning}{', and NVML reads it' if well else ''}"
            yield DROPPED.found(alive, limits, message, severity=_NOTICE if well else None, pci=pci)


def _of_the_engine(alive: Observation, limits: Limits) -> Iterator[Finding]:
    engine, library, why = (str(alive.values.get(name) or "") for name in ("dcgm_version", "dcgm_library", "no_health"))
    if engine and library and engine != library:
        yield MISMATCH.found(alive, limits, f"{MISMATCH.meaning}: {engine} and {library}")
    if why:
        yield NO_HEALTH.found(alive, limits, f"{NO_HEALTH.meaning}; {why}")


def _incident(history: History, limits: Limits, observation: Observation, code: int) -> Finding:
    """Where NVML reads the same of that GPU its own rule decides, and DCGM's word is a notice that asks for nothing."""
    known = CODES.get(code)
    given = int(number(observation, "severity") or 0)
    row = known.row if known else unlisted(code, given)
    severity, remedy = row.severity, row.remedy
    if known and _is_read(history, observation.pci, known.nvml_reads, limits):
        severity, remedy = _NOTICE, _NONE
    elif given == _MONITOR:
        severity = _NOTICE
    elif not observation.pci or number(observation, "health") == _WARN:
        severity = min(severity, _DEGRADED)
    warns = " (a warning)" if number(observation, "health") == _WARN else ""
    found = row.found(observation, limits, f"{row.meaning}{warns}", severity=severity, remedy=remedy)
    instance = number(observation, "gpu_instance")
    return replace(found, instance=None if instance is None else int(instance))


def _is_read(history: History, pci: str, signal: str, limits: Limits) -> bool:
    reading = history.readings.get(pci)
    lately = reading is not None and pci not in history.lost and history.now - reading.arrived <= limits.silent_s
    return lately and number(reading, signal) is not None
