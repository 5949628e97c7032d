"""GPU memory: the flags and counters that NVML reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from agent.config.limits import Limits
from agent.diagnosis.history import History, number
from agent.diagnosis.row import TABLE
from agent.diagnosis.second_word import contains_errors
from agent.model.fault import Finding, Severity
from agent.model.observation import Observation

Test = Callable[[Observation, Limits], bool]


def _at_least(signal: str, setting: str) -> Test:
    return lambda reading, limits: (number(reading, signal) or 0) >= getattr(limits, setting) > 0


# Flags that NVML reads: raised where the reading that the row names is not 0.
_FLAGS = (
    "row-remap-pending",
    "row-remap-failure",
    "row-remap-exhausted",
    "page-retirement-pending",
    "sram-threshold",
    "channel-repair-pending",
    "tpc-repair-pending",
    "memory-unrepairable",
    "inforom-corrupt",
)
# And states that are raised otherwise.
_STATES: Mapping[str, Test] = {
    "row-remap-limit": _at_least("remapped_rows_uncorrected", "row_remaps_uncorrected"),
    "ecc-off": lambda reading, _: number(reading, "ecc_mode") == 0,
    "ecc-mode-pending": lambda reading, _: (
        number(reading, "ecc_mode_pending") not in (None, number(reading, "ecc_mode"))
    ),
    "persistence-off": lambda reading, _: number(reading, "persistence_mode") == 0,
}
UNCORRECTED = TABLE["ecc-uncorrected"]
CORRECTED = TABLE["ecc-corrected-rate"]
PAGES = TABLE["page-retirement-limit"]


def find(history: History, limits: Limits) -> Iterator[Finding]:
    for reading in history.suspects.values():
        for flag in (TABLE[rule] for rule in _FLAGS):
            if number(reading, flag.signals[0]):
                yield flag.found(reading, limits)
        for rule, raised in _STATES.items():
            if raised(reading, limits):
                yield TABLE[rule].found(reading, limits)
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
