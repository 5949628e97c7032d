"""What DCGM says of its own: incidents of its health check, GPUs it no longer lists, and values unlike NVML's.

It is the second witness: where NVML or the kernel log shows the same, the incident joins that fault. What DCGM draws
from Xids is none here: our catalogue judges Xids, and DCGM keeps its word on them for ever, even after a reset.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from agent.limits import Limits
from agent.model import Finding, Observation, Remedy, Severity
from agent.policy.history import SECOND, History, number
from agent.policy.row import Row

_NOTICE, _DEGRADED, _FATAL = Severity.NOTICE, Severity.DEGRADED, Severity.FATAL
_NONE, _ASK, _RESET, _REBOOT, _REPLACE = (
    Remedy.NONE, Remedy.CONTACT_SUPPORT, Remedy.RESET_GPU, Remedy.REBOOT_NODE, Remedy.REPLACE_NODE,
)  # fmt: skip
# What NVML reads itself, its own rule calls fatal: DCGM's word alone withdraws a node only where NVML can't read it.
_NVML_READS = {4: "ecc_uncorrected_volatile", 80: "remapped_rows_failure", 118: "sram_threshold_exceeded",
               125: "recovery_action", 126: "recovery_action"}  # fmt: skip
_MEMORY_XIDS = ("xid-48", "xid-140", "xid-95", "xid-94")


@dataclass(frozen=True, slots=True)
class Code:
    """What an incident's code (DCGM_FR_*) means to us, and the faults whose symptom it is, the best first."""

    row: Row
    explained_by: tuple[str, ...] = ()


def _code(number: int, severity: Severity, remedy: Remedy, meaning: str, *explained_by: str) -> tuple[int, Code]:
    row = Row(f"dcgm-{number}", severity, remedy, f"DCGM: {meaning}", "flag_confirm_s", "dcgm_clear_s")
    return number, Code(row, explained_by)


# dcgm_errors.h. 12, clocks held down for power, is left out: any full load does that. Where NVML's rules judge the same
# quantity by rates and shares of time (3, 10, 13, 70), DCGM's own limits are a notice.
_CODES = dict((
    _code(3, _NOTICE, _ASK, "many PCIe replays", "pcie-replays"),
    _code(4, _FATAL, _RESET, "uncorrectable memory errors", "ecc-uncorrected", *_MEMORY_XIDS),
    _code(5, _NOTICE, _NONE, "many correctable memory errors", "ecc-corrected-rate"),
    _code(6, _DEGRADED, _RESET, "memory pages wait for a reset to be retired", "page-retirement-pending"),
    _code(7, _DEGRADED, _REPLACE, "too many retired memory pages", "page-retirement-limit"),
    _code(8, _DEGRADED, _REPLACE, "too many memory pages retired for uncorrectable errors", "page-retirement-limit"),
    _code(9, _DEGRADED, _ASK, "a corrupt InfoROM", "inforom-corrupt"),
    _code(10, _NOTICE, _ASK, "clocks held down for heat", "temperature-shutdown", "temperature",
          "memory-temperature", "hw-thermal-slowdown", "sw-thermal-slowdown"),
    _code(11, _NOTICE, _ASK, "the power can't be read"),
    _code(13, _NOTICE, _ASK, "NVLink errors", "nvlink-errors", "nvlink-crc", "nvlink-recovery-failed"),
    _code(14, _DEGRADED, _ASK, "an NVLink is down", "nvlink-down"),
    _code(15, _DEGRADED, _ASK, "fatal errors of an NVSwitch", "sxid-*"),
    _code(16, _NOTICE, _ASK, "errors of an NVSwitch", "sxid-*"),
    _code(29, _NOTICE, _NONE, "persistence mode is off", "persistence-off"),
    _code(33, _DEGRADED, _ASK, "the NVLink fabric is not healthy", "fabric-health", "fabric-state"),
    _code(46, _DEGRADED, _ASK, "the PCIe link lost lanes", "pcie-width"),
    _code(52, _DEGRADED, _REPLACE, "faulty memory", "memory-unrepairable"),
    _code(55, _NOTICE, _NONE, "memory error correction is off", "ecc-off"),
    _code(70, _NOTICE, _ASK, "NVLink checksum errors", "nvlink-crc", "nvlink-errors"),
    _code(71, _DEGRADED, _ASK, "critical NVLink errors", "nvlink-recovery-failed", "nvlink-errors"),
    _code(80, _FATAL, _REPLACE, "a memory row could not be remapped", "row-remap-failure", "xid-64"),
    _code(83, _DEGRADED, _RESET, "memory pages wait for a reset to be retired", "page-retirement-pending"),
    _code(84, _DEGRADED, _RESET, "a memory row was remapped", "row-remap-pending", "xid-63"),
    _code(85, _DEGRADED, _RESET, "a memory row waits for a reset to be remapped", "row-remap-pending", "xid-63"),
    _code(118, _FATAL, _REPLACE, "on-chip memory errors passed the replacement threshold", "sram-threshold"),
    _code(119, _DEGRADED, _ASK, "an NVLink's effective bit error rate", "nvlink-ber"),
    _code(121, _DEGRADED, _ASK, "an NVLink's symbol bit error rate", "nvlink-ber"),
    _code(122, _NOTICE, _ASK, "the IMEX domain is not healthy"),
    _code(123, _DEGRADED, _ASK, "the GPU has not joined the NVLink fabric", "fabric-state", "fabric-health"),
    _code(125, _FATAL, _RESET, "the driver asks for a GPU reset", "recovery-action"),
    _code(126, _FATAL, _REBOOT, "the driver asks for a reboot", "recovery-action"),
    _code(127, _DEGRADED, _RESET, "the driver asks to drain peer-to-peer traffic", "recovery-action"),
    _code(128, _DEGRADED, _RESET, "the driver asks to drain and reset the GPU", "recovery-action"),
    _code(132, _DEGRADED, _ASK, "as many memory rows were remapped as the table holds", "row-remap-limit"),
))  # fmt: skip
_IGNORED = (12,)
# dcgm_errors.h's own severities, for a code that is not listed: MONITOR, ISOLATE, TRIAGE, CONFIG, RESET.
_BY_SEVERITY = {1: (_NOTICE, _ASK), 2: (_DEGRADED, _ASK), 4: (_DEGRADED, _ASK), 5: (_NOTICE, _NONE),
                6: (_DEGRADED, _RESET)}  # fmt: skip
DROPPED = Row("dcgm-dropped", _DEGRADED, _ASK, "DCGM no longer lists the GPU", "", "dcgm_clear_s")
DISAGREES = Row("dcgm-disagrees", _NOTICE, _ASK, "DCGM and NVML read different values", "disagreement_confirm_s",
                "notice_clear_s")  # fmt: skip
ELSEWHERE = Row("dcgm-elsewhere", _NOTICE, _ASK, "the DCGM engine is another node's: look at sources.dcgm.address",
                "flag_confirm_s", "flag_confirm_s")  # fmt: skip
ROWS = (*(code.row for code in _CODES.values()), DROPPED, DISAGREES, ELSEWHERE)
EXPLAINED_BY: Mapping[str, tuple[str, ...]] = {
    **{code.row.rule: code.explained_by for code in _CODES.values()},
    DROPPED.rule: ("xid-79", "gpu-lost", "gpu-missing", "gpu-reset-required"),
}
# Quantities that both read and that stand still on a healthy GPU.
_COMPARED = (
    "ecc_mode", "ecc_mode_pending", "ecc_corrected_volatile", "ecc_uncorrected_volatile", "ecc_corrected_aggregate",
    "ecc_uncorrected_aggregate", "sram_threshold_exceeded", "retired_pages_sbe", "retired_pages_dbe",
    "retired_pages_pending", "remapped_rows_uncorrected", "remapped_rows_corrected", "remapped_rows_failure",
    "remapped_rows_pending", "memory_unrepairable", "recovery_action", "pcie_replays", "pcie_max_width", "pcie_width",
)  # fmt: skip


def find(history: History, limits: Limits) -> Iterator[Finding]:
    alive = history.alive.get(SECOND)
    if history.elsewhere:
        if alive:
            yield ELSEWHERE.found(alive, limits, pci="")
        return
    for seen in history.incidents.values():
        if isinstance(seen.value, int) and "xid" not in seen.values and seen.value not in _IGNORED:
            yield _incident(history, limits, seen, seen.value)
    for pci, reading in history.witnessed.items() if alive else ():
        if alive and alive.seen - reading.seen > limits.missing_confirm_s:
            nvml = history.readings.get(pci)
            well = nvml is not None and pci not in history.lost and history.now - nvml.seen <= limits.silent_s
            told = f"{DROPPED.meaning}{', and NVML reads it' if well else ''}"
            yield DROPPED.found(alive, limits, told, severity=_NOTICE if well else None, pci=pci)
    told_apart: dict[str, list[str]] = {}
    for pci, signal, ours, theirs in disagreements(history, limits.silent_s):
        told_apart.setdefault(pci, []).append(f"{signal}: {theirs:g} by DCGM, {ours:g} by NVML")
    for pci, each in told_apart.items():
        found = DISAGREES.found(history.witnessed[pci], limits)
        yield replace(found, evidence=replace(found.evidence, raw="; ".join(each)[:500]))


def _incident(history: History, limits: Limits, seen: Observation, code: int) -> Finding:
    known = _CODES.get(code)
    if known:
        row, severity = known.row, known.row.severity
        told_by_nvml = history.number(seen.pci, _NVML_READS.get(code, "")) is not None
        if severity is _FATAL and (told_by_nvml or not seen.pci):
            severity = _DEGRADED
    else:
        severity, remedy = _BY_SEVERITY.get(int(number(seen, "severity") or 0), (_DEGRADED, _ASK))
        _, other = _code(code, severity, remedy, "an incident that this agent has no word for")
        row = other.row
    instance = number(seen, "gpu_instance")
    return replace(row.found(seen, limits, row.meaning, severity=severity),
                   instance=None if instance is None else int(instance))  # fmt: skip


def disagreements(history: History, silent_s: float) -> Iterator[tuple[str, str, float, float]]:
    """GPU, signal, NVML's value and DCGM's, where both are of now, NVML's stands still, and they are not the same."""
    for pci, second in history.witnessed.items() if not history.elsewhere else ():
        first, before = history.readings.get(pci), history.before.get(pci)
        if first is None or pci in history.lost or history.now - min(first.seen, second.seen) > silent_s:
            continue
        for signal in _COMPARED:
            ours, theirs = number(first, signal), number(second, signal)
            if None not in (ours, theirs) and ours != theirs and number(before, signal) == ours:
                yield pci, signal, float(ours or 0), float(theirs or 0)
