"""Heat against the GPU's own limits, in both regimes: absolute °C up to Ampere, a signed margin from Ada on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from agent.config.limits import Limits
from agent.diagnosis.history import History, number
from agent.diagnosis.row import TABLE, Row
from agent.model.fault import Finding
from agent.model.observation import Observation

_NEAR_SHUTDOWN_MARGIN_C = 1
_NEAR_SHUTDOWN_C = 2

SHUTDOWN = TABLE["temperature-shutdown"]
SLOWDOWN = TABLE["temperature"]
MEMORY = TABLE["memory-temperature"]


def find(history: History, limits: Limits) -> Iterator[Finding]:
    for reading in history.readings.values():
        slowdown, shutdown = headroom(reading)
        if shutdown is not None and shutdown <= 0:
            yield _hot(SHUTDOWN, reading, limits)
        if slowdown is not None and slowdown <= limits.temperature_hysteresis_c:
            yield _hot(SLOWDOWN, reading, limits, holds_only=slowdown > 0)
        memory, most = number(reading, "memory_temperature_c"), number(reading, "temperature_mem_max_c")
        if memory and most and memory >= most - limits.temperature_hysteresis_c:
            yield MEMORY.found(reading, limits, holds_only=memory < most)


def headroom(reading: Observation) -> tuple[float | None, float | None]:
    """°C left until the slowdown and until 'close to shutdown' limit; None where the GPU gives no limit.

    The fields *_tlimit_c are offsets in the margin's own scale and are never compared with °C.
    """
    if by_margin(reading):
        margin, slow, shut = (number(reading, s) for s in ("margin_c", "slowdown_tlimit_c", "shutdown_tlimit_c"))
        return _between(margin, slow), _between(margin, shut, _NEAR_SHUTDOWN_MARGIN_C)
    heat, slow, shut = (
        number(reading, s) for s in ("temperature_c", "temperature_slowdown_c", "temperature_shutdown_c")
    )
    return _between(slow or None, heat), _between(shut or None, heat, _NEAR_SHUTDOWN_C)


def by_margin(reading: Observation) -> bool:
    """Whether this GPU's heat is judged by its margin: it gives one, and the offset at which it slows down."""
    return None not in (number(reading, "margin_c"), number(reading, "slowdown_tlimit_c"))


def _between(more: float | None, less: float | None, near: int = 0) -> float | None:
    return None if more is None or less is None else more - less - near


def _hot(row: Row, reading: Observation, limits: Limits, holds_only: bool = False) -> Finding:
    """The heat itself belongs to the evidence: a message that changed with each degree would be written each time."""
    what, message, signals = "shutdown" if row is SHUTDOWN else "slowdown", row.meaning, row.signals
    if by_margin(reading):
        margin, offset = number(reading, "margin_c"), number(reading, f"{what}_tlimit_c")
        message = f"the thermal margin (T.Limit) is down to its {what} offset of {offset:.0f} °C"
        raw = f"margin {margin:.0f} °C, {what} offset {offset:.0f} °C (T.Limit)"
        signals = ("margin_c",)
    else:
        heat, limit = number(reading, "temperature_c"), number(reading, f"temperature_{what}_c")
        raw = f"{heat:.0f} °C, {what} limit {limit:.0f} °C"
    said = row.found(reading, limits, message, holds_only=holds_only)
    return replace(said, evidence=replace(said.evidence, raw=raw), signals=signals)
