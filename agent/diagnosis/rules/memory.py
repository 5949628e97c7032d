"""GPU memory: the flags and counters that NVML reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from agent.config.limits import Limits
from agent.diagnosis.history import History, number
from agent.diagnosis.row import Row
from agent.model.fault import Finding, Remedy, Severity
from agent.model.observation import Observation

Test = Callable[[Observation, Limits], bool]


@dataclass(frozen=True, slots=True)
class _Flag:
    row: Row
    raised: Test


def _flag(
    rule: str,
    signal: str,
    severity: Severity,
    remedy: Remedy,
    meaning: str,
    *,
    lasting: bool = False,
    raised: Test | None = None,
) -> _Flag:
    """``lasting``: written into the card, so that only another card ends it."""
    row = Row(rule, severity, remedy, meaning, "flag_confirm_s", "" if lasting else "flag_confirm_s", (signal,))
    return _Flag(row, raised or (lambda reading, _: bool(number(reading, signal))))


def _at_least(signal: str, setting: str) -> Test:
    return lambda reading, limits: (number(reading, signal) or 0) >= getattr(limits, setting) > 0


_FLAGS = (
    _flag(
        "row-remap-pending",
        "remapped_rows_pending",
        Severity.DEGRADED,
        Remedy.RESET_GPU,
        "a bad memory row waits for a reset to be remapped; running work is not in danger",
    ),
    _flag(
        "row-remap-failure",
        "remapped_rows_failure",
        Severity.FATAL,
        Remedy.REPLACE_NODE,
        "a memory row could not be remapped",
        lasting=True,
    ),
    _flag(
        "row-remap-exhausted",
        "remap_banks_without_spares",
        Severity.DEGRADED,
        Remedy.CONTACT_SUPPORT,
        "a memory bank has no spare rows left",
        lasting=True,
    ),
    _flag(
        "row-remap-limit",
        "remapped_rows_uncorrected",
        Severity.DEGRADED,
        Remedy.CONTACT_SUPPORT,
        "as many memory rows were remapped for uncorrectable errors as the table holds",
        lasting=True,
        raised=_at_least("remapped_rows_uncorrected", "row_remaps_uncorrected"),
    ),
    _flag(
        "page-retirement-pending",
        "retired_pages_pending",
        Severity.NOTICE,
        Remedy.RESET_GPU,
        "a memory page waits for a reset to be retired",
    ),
    _flag(
        "sram-threshold",
        "sram_threshold_exceeded",
        Severity.FATAL,
        Remedy.REPLACE_NODE,
        "on-chip memory errors passed NVIDIA's replacement threshold",
        lasting=True,
    ),
    _flag(
        "channel-repair-pending",
        "channel_repair_pending",
        Severity.NOTICE,
        Remedy.RESET_GPU,
        "a memory channel's repair waits for a reset",
    ),
    _flag(
        "tpc-repair-pending",
        "tpc_repair_pending",
        Severity.NOTICE,
        Remedy.RESET_GPU,
        "a compute cluster's repair waits for a reset",
    ),
    _flag(
        "memory-unrepairable",
        "memory_unrepairable",
        Severity.DEGRADED,
        Remedy.REPLACE_NODE,
        "the GPU says that its memory can't be repaired",
        lasting=True,
    ),
    _flag(
        "inforom-corrupt",
        "inforom_corrupt",
        Severity.DEGRADED,
        Remedy.CONTACT_SUPPORT,
        "the board's InfoROM is corrupt: its records of errors can't be trusted",
    ),
    _flag(
        "ecc-off",
        "ecc_mode",
        Severity.NOTICE,
        Remedy.NONE,
        "memory error correction is switched off",
        raised=lambda reading, _: number(reading, "ecc_mode") == 0,
    ),
    _flag(
        "ecc-mode-pending",
        "ecc_mode_pending",
        Severity.NOTICE,
        Remedy.RESET_GPU,
        "another ECC mode takes effect at the next reset",
        raised=lambda reading, _: number(reading, "ecc_mode_pending") not in (None, number(reading, "ecc_mode")),
    ),
    _flag(
        "persistence-off",
        "persistence_mode",
        Severity.NOTICE,
        Remedy.NONE,
        "persistence mode is off: counters begin anew whenever the last client leaves",
        raised=lambda reading, _: number(reading, "persistence_mode") == 0,
    ),
)
UNCORRECTED = Row("ecc-uncorrected", Severity.FATAL, Remedy.RESET_GPU, "new uncorrectable memory errors")
CORRECTED = Row(
    "ecc-corrected-rate",
    Severity.NOTICE,
    Remedy.CONTACT_SUPPORT,
    "correctable memory errors come often; each was corrected",
    "",
    "rate_clear_s",
    ("ecc_corrected_volatile",),
)
PAGES = Row(
    "page-retirement-limit",
    Severity.DEGRADED,
    Remedy.REPLACE_NODE,
    "as many memory pages are retired as NVIDIA replaces a card for",
    "flag_confirm_s",
    "",
)
# NVML's architecture → product names; Hopper has no other chip, and a name may be a vendor's own.
_CONTAIN = {7: ("A100", "A800", "A30"), 9: ("",), 10: ("B100", "B200", "B300")}
ROWS = (*(flag.row for flag in _FLAGS), UNCORRECTED, CORRECTED, PAGES)


def find(history: History, limits: Limits) -> Iterator[Finding]:
    for reading in history.suspects.values():
        for flag in _FLAGS:
            if flag.raised(reading, limits):
                yield flag.row.found(reading, limits)
        yield from _uncorrected(history, reading, limits)
        yield from _corrected(history, reading, limits)
        if _too_many_pages(history, reading, limits):
            yield PAGES.found(reading, limits)


def _uncorrected(history: History, reading: Observation, limits: Limits) -> Iterator[Finding]:
    """A count that grew since this GPU's counters began; what was there before us is history.

    With MIG the volatile count can't be read, and the aggregate one is watched in its place.
    """
    first = history.first.get(reading.pci)
    for signal in ("ecc_uncorrected_volatile", "ecc_uncorrected_aggregate"):
        now, before = number(reading, signal), number(first, signal)
        if now is not None and before is not None:
            if now > before:
                # Where the GPU contains an error to its victim the other work goes on; Xid 95 says if it did not.
                severity = Severity.DEGRADED if contains_errors(reading) else Severity.FATAL
                message = f"{now - before:.0f} new uncorrectable memory errors"
                yield UNCORRECTED.found(reading, limits, message, severity=severity)
            return


def _corrected(history: History, reading: Observation, limits: Limits) -> Iterator[Finding]:
    hours = [history.growth(reading.pci, "ecc_corrected_volatile", 3600, ago) for ago in (0.0, 3600.0)]
    rates = [3600 * grown[0] / grown[1] for grown in hours if grown]
    limit = limits.ecc_corrected_per_hour
    if len(rates) == len(hours) and rates[0] >= limit / 2:
        yield CORRECTED.found(reading, limits, holds_only=min(rates) < limit)


def _too_many_pages(history: History, reading: Observation, limits: Limits) -> bool:
    sbe, dbe = (number(reading, f"retired_pages_{kind}") or 0 for kind in ("sbe", "dbe"))
    before = number(history.first.get(reading.pci), "retired_pages_dbe")
    grows = before is not None and dbe > before
    return 0 < limits.retired_pages <= sbe + dbe or (grows and dbe > limits.retired_pages_dbe)


def contains_errors(reading: Observation | None) -> bool:
    """Error containment exists on GA100, GH100 and Blackwell data-centre chips, not on GA10x, Ada and workstations."""
    architecture, name = number(reading, "architecture"), str(reading.values.get("name") or "") if reading else ""
    return any(model in name for model in _CONTAIN.get(int(architecture or 0), ()))
