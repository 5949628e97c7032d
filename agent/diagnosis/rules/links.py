"""Links: PCIe width, replays and fatal errors; NVLink up to generation 4 and from 5 on; the NVSwitch fabric."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil

from agent.config.limits import Limits
from agent.diagnosis.history import History, number
from agent.diagnosis.row import TABLE
from agent.model.fault import Finding, Severity
from agent.model.observation import Observation

_MINUTES, _BAD_MINUTES = 5, 3
_MANY = 10  # times the limit of a notice
_REPLAYS_A_LANE = (0.15, 0.3, 0.48, 0.96, 1.92, 3.84)  # by PCIe generation, as DCGM's health watch has it

WIDTH = TABLE["pcie-width"]
REPLAYS = TABLE["pcie-replays"]
PCIE_FATAL = TABLE["pcie-fatal-errors"]
NVLINK_DOWN = TABLE["nvlink-down"]
NVLINK_ERRORS = TABLE["nvlink-errors"]
NVLINK_CRC = TABLE["nvlink-crc"]
NVLINK_RECOVERY = TABLE["nvlink-recovery-failed"]
NVLINK_BER = TABLE["nvlink-ber"]
FABRIC_STATE = TABLE["fabric-state"]
FABRIC_HEALTH = TABLE["fabric-health"]

# nvmlGpuFabricInfo healthMask: packed fields of two bits, 1 is a fault, 0 unsupported, 2 fine.
_FABRIC_BITS = {
    0: "degraded bandwidth",
    2: "a route is recovering",
    4: "a route is unhealthy",
    6: "an access timeout is being recovered",
}
_CONFIGURATION_SHIFT, _CONFIGURATION_BITS = 8, 0xF  # 0 unsupported, 1 fine, the rest is a fault
_FABRIC_NOT_STARTED, _FABRIC_IN_PROGRESS = 1, 2
_SUMMARY_UNHEALTHY = 2


def find(history: History, limits: Limits) -> Iterator[Finding]:
    for pci, reading in history.suspects.items():
        first = history.first.get(pci)
        width, widest = number(reading, "pcie_width"), number(reading, "pcie_max_width")
        if width and widest and width < widest:
            yield WIDTH.found(reading, limits, f"the PCIe link runs on {width:.0f} of {widest:.0f} lanes")
        yield from _replays(history, reading, limits)
        for row, counter in ((PCIE_FATAL, "pcie_fatal_errors"), (NVLINK_RECOVERY, "nvlink_recovery_failed")):
            if _grew(history, reading, first, counter):
                yield row.found(reading, limits)
        yield from _nvlink(history, reading, limits)
        state = number(reading, "fabric_state")
        if state in (_FABRIC_NOT_STARTED, _FABRIC_IN_PROGRESS):
            yield FABRIC_STATE.found(reading, limits)
        if wrong := fabric_faults(reading):
            yield FABRIC_HEALTH.found(reading, limits, f"{FABRIC_HEALTH.meaning}: {', '.join(wrong)}")


def _grew(history: History, reading: Observation, first: Observation | None, counter: str) -> bool:
    """News only in the round that brought it: the clearing clock runs from the last growth."""
    now, before = number(reading, counter), number(history.before.get(reading.pci, first), counter)
    return now is not None and before is not None and now > before


def _replays(history: History, reading: Observation, limits: Limits) -> Iterator[Finding]:
    rates = history.minutes(reading.pci, "pcie_replays", _MINUTES)
    limit = limits.pcie_replays_per_minute or usual_replays(reading)
    if _often(rates, limit / 2):
        severity = Severity.DEGRADED if _often(rates, _MANY * limit) else Severity.NOTICE
        yield REPLAYS.found(reading, limits, severity=severity, holds_only=not _often(rates, limit))


def usual_replays(reading: Observation) -> float:
    """A minute's replays that DCGM takes for normal: so many a lane, doubling with each generation from the second."""
    generation, lanes = (
        number(reading, f"pcie_max_{what}") or most for what, most in (("generation", 5), ("width", 16))
    )
    return ceil(_REPLAYS_A_LANE[min(int(generation), len(_REPLAYS_A_LANE)) - 1] * lanes)


def _nvlink(history: History, reading: Observation, limits: Limits) -> Iterator[Finding]:
    pci = reading.pci
    card, active = history.cards.get(pci), number(reading, "nvlink_active")
    expected = card.nvlinks if card else 0
    if active is not None and active < expected:
        severity = Severity.FATAL if limits.nvlink_down_fatal else Severity.DEGRADED
        message = f"{expected - active:.0f} of {expected} NVLinks are down"
        yield NVLINK_DOWN.found(reading, limits, message, severity=severity)
    limit = limits.nvlink_errors_per_minute
    if any(_often(history.minutes(pci, name, _MINUTES), limit) for name in ("nvlink_replay", "nvlink_recovery")):
        yield NVLINK_ERRORS.found(reading, limits)
    crc = history.minutes(pci, "nvlink_crc", 1)
    if crc and crc[-1] / 60 >= limits.nvlink_crc_per_second / 2:
        yield NVLINK_CRC.found(reading, limits, holds_only=crc[-1] / 60 < limits.nvlink_crc_per_second)
    if (number(reading, "nvlink_effective_ber") or 0) > limits.nvlink_ber:
        yield NVLINK_BER.found(reading, limits)


def _often(rates: tuple[float, ...], limit: float) -> bool:
    return sum(rate >= limit for rate in rates) >= _BAD_MINUTES


def fabric_faults(reading: Observation) -> list[str]:
    """What the fabric's health mask says in words. A healthy node's mask is not zero: each field is decoded."""
    mask = int(number(reading, "fabric_health_mask") or 0)
    wrong = [words for shift, words in _FABRIC_BITS.items() if (mask >> shift) & 3 == 1]
    if (mask >> _CONFIGURATION_SHIFT) & _CONFIGURATION_BITS > 1:
        wrong.append("its configuration is incorrect")
    if not wrong and number(reading, "fabric_health_summary") == _SUMMARY_UNHEALTHY:
        wrong.append("its summary says so")
    return wrong
