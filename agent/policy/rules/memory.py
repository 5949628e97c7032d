"""GPU memory and the driver's own recovery action: flags and counters that NVML reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from agent.config import Limits
from agent.model import Evidence, Finding, Observation, Remedy, Severity
from agent.policy.history import History, number

# NVML_GPU_RECOVERY_ACTION_*. An action that is not listed asks for a human: DCGM 4.6 rejects 5 to 7, we don't.
_RECOVERY = {
    1: (Severity.FATAL, Remedy.RESET_GPU, "reset the GPU"),
    2: (Severity.FATAL, Remedy.REBOOT_NODE, "reboot the node"),
    3: (Severity.DEGRADED, Remedy.RESET_GPU, "drain peer-to-peer traffic"),
    4: (Severity.DEGRADED, Remedy.RESET_GPU, "drain and reset the GPU"),
    5: (Severity.DEGRADED, Remedy.CONTACT_SUPPORT, "recover the IMEX domain"),
    6: (Severity.DEGRADED, Remedy.CONTACT_SUPPORT, "reset the GPU's bus"),
    7: (Severity.FATAL, Remedy.REBOOT_NODE, "reboot the system"),
}
_OTHER = (Severity.DEGRADED, Remedy.CONTACT_SUPPORT, "an action this agent does not know")


@dataclass(frozen=True, slots=True)
class _Flag:
    rule: str
    signal: str
    severity: Severity
    remedy: Remedy
    message: str
    clears: bool = True  # False: only another card ends it


_FLAGS = (
    _Flag("row-remap-pending", "remapped_rows_pending", Severity.DEGRADED, Remedy.RESET_GPU,
          "a bad memory row waits for a reset to be remapped; running work is not in danger"),
    _Flag("row-remap-failure", "remapped_rows_failure", Severity.FATAL, Remedy.REPLACE_NODE,
          "a memory row could not be remapped", clears=False),
    _Flag("sram-threshold", "sram_threshold_exceeded", Severity.FATAL, Remedy.REPLACE_NODE,
          "on-chip memory errors passed NVIDIA's replacement threshold", clears=False),
    _Flag("page-retirement-pending", "retired_pages_pending", Severity.NOTICE, Remedy.RESET_GPU,
          "a memory page waits for a reset to be retired"),
)  # fmt: skip


def find(history: History, limits: Limits) -> Iterator[Finding]:
    for reading in history.readings.values():
        action = int(number(reading, "recovery_action") or 0)
        if action:
            severity, remedy, words = _RECOVERY.get(action, _OTHER)
            message = f"the driver's recovery action is {action}: {words}"
            yield _finding(reading, "recovery-action", severity, remedy, message, limits, clears=True)
        for flag in _FLAGS:
            if number(reading, flag.signal):
                yield _finding(reading, flag.rule, flag.severity, flag.remedy, flag.message, limits, flag.clears)
        yield from _uncorrected(history, reading)


def _finding(
    reading: Observation, rule: str, severity: Severity, remedy: Remedy, message: str, limits: Limits, clears: bool
) -> Finding:
    evidence = Evidence(reading.at, reading.source, message)
    return Finding(
        rule, reading.pci, severity, remedy, message, evidence, reading.seen, "nvml",
        confirm_s=limits.flag_confirm_s, clear_s=limits.flag_confirm_s if clears else None,
    )  # fmt: skip


def _uncorrected(history: History, reading: Observation) -> Iterator[Finding]:
    """A growing volatile count since this GPU's counters began; what was there before us is history."""
    now, before = (number(r, "ecc_uncorrected_volatile") for r in (reading, history.first.get(reading.pci)))
    if now is None or before is None or now <= before:
        return
    contained = contains_errors(reading)
    yield Finding(
        "ecc-uncorrected", reading.pci,
        # Where the GPU contains an error to its victim the other work goes on; Xid 95 or 48 says if it did not.
        Severity.DEGRADED if contained else Severity.FATAL, Remedy.RESET_GPU,
        f"{now - before:.0f} new uncorrectable memory errors",
        Evidence(reading.at, reading.source, f"ecc_uncorrected_volatile {now:.0f}, was {before:.0f}"),
        reading.seen, "nvml",
    )  # fmt: skip


def contains_errors(reading: Observation) -> bool:
    """Error containment exists on GA100, GH100 and Blackwell data-centre chips, not on GA10x and Ada."""
    architecture, name = number(reading, "architecture"), str(reading.values.get("name") or "")
    ampere_100: Callable[[str], bool] = lambda n: any(model in n for model in ("A100", "A800", "A30"))  # noqa: E731
    return (architecture is not None and architecture >= 9) or (architecture == 7 and ampere_100(name))
