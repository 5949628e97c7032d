"""Clocks held down, by the share of time and not by single samples: heat, and the rack's power brake."""

from __future__ import annotations

from collections.abc import Iterator

from agent.config.limits import Limits
from agent.diagnosis.history import History
from agent.diagnosis.row import TABLE
from agent.model.fault import Finding, Severity
from agent.model.observation import Observation

_HOLDS_SHARE = 0.05  # what a slowdown must fall under before it may clear
_HW_SLOWDOWN, _HW_SPECIFIC = 0x8, 0xC0  # the umbrella bit, and the two that say which slowdown it is

HW_THERMAL = TABLE["hw-thermal-slowdown"]
SW_THERMAL = TABLE["sw-thermal-slowdown"]
POWER_BRAKE = TABLE["power-brake"]
HW_SLOWDOWN = TABLE["hw-slowdown"]


def find(history: History, limits: Limits) -> Iterator[Finding]:
    braked: list[tuple[Observation, bool]] = []
    for pci, reading in history.suspects.items():
        short = _share(history, pci, "hw_thermal_ns", 300)
        degraded = _share(history, pci, "hw_thermal_ns", 600) >= limits.hw_thermal_degraded_share
        if degraded or short >= _HOLDS_SHARE:
            severity = Severity.DEGRADED if degraded else Severity.NOTICE
            holds = not degraded and short < limits.hw_thermal_notice_share
            yield HW_THERMAL.found(reading, limits, severity=severity, holds_only=holds)
        share = _share(history, pci, "sw_thermal_ns", 900)
        if share >= _HOLDS_SHARE:
            yield SW_THERMAL.found(reading, limits, holds_only=share < limits.sw_thermal_share)
        share = _share(history, pci, "hw_power_brake_ns", 300)
        if share >= _HOLDS_SHARE:
            braked.append((reading, share < limits.power_brake_share))
        reasons = int(history.number(pci, "clocks_event_reasons") or 0)
        if reasons & _HW_SLOWDOWN and not reasons & _HW_SPECIFIC:
            yield HW_SLOWDOWN.found(reading, limits)
    yield from _brake(braked, len(history.readings), limits)


def _brake(braked: list[tuple[Observation, bool]], gpus: int, limits: Limits) -> Iterator[Finding]:
    """One fault of the node where all its GPUs are braked: it is their common supply."""
    if len(braked) == gpus > 1:
        yield POWER_BRAKE.found(braked[-1][0], limits, pci="", holds_only=all(holds for _, holds in braked))
    else:
        for reading, holds in braked:
            yield POWER_BRAKE.found(reading, limits, holds_only=holds)


def _share(history: History, pci: str, counter: str, window_s: float) -> float:
    """The share of the window that a nanosecond counter covers; 0 until the window was watched."""
    grown = history.growth(pci, counter, window_s)
    return 0.0 if grown is None else grown[0] / 1e9 / grown[1]
