"""Heat against the GPU's own limits, in both regimes: absolute °C up to Ampere, a signed margin from Ada on."""

from __future__ import annotations

from collections.abc import Iterator

from agent.config import Limits
from agent.model import Evidence, Finding, Observation, Remedy, Severity
from agent.policy.history import History, number

_NEAR_SHUTDOWN_MARGIN_C = 1
_NEAR_SHUTDOWN_C = 2


def find(history: History, limits: Limits) -> Iterator[Finding]:
    for reading in history.readings.values():
        slowdown, shutdown = headroom(reading)
        if shutdown is not None and shutdown <= 0:
            yield _hot(reading, "temperature-shutdown", Severity.FATAL, Remedy.CONTACT_SUPPORT,
                       "close to the temperature at which the board cuts its power", limits.flag_confirm_s,
                       limits)  # fmt: skip
        if slowdown is not None and slowdown <= limits.temperature_hysteresis_c:
            yield _hot(reading, "temperature", Severity.DEGRADED, Remedy.CONTACT_SUPPORT,
                       "hotter than its slowdown limit", limits.temperature_confirm_s, limits,
                       holds_only=slowdown > 0)  # fmt: skip


def headroom(reading: Observation) -> tuple[float | None, float | None]:
    """°C left until the slowdown and until 'close to shutdown' limit; None where the GPU gives no limit.

    The fields *_tlimit_c are offsets in the margin's own scale and are never compared with °C.
    """
    margin, slow, shut = (number(reading, s) for s in ("margin_c", "slowdown_tlimit_c", "shutdown_tlimit_c"))
    if margin is not None and slow is not None:
        return margin - slow, None if shut is None else margin - shut - _NEAR_SHUTDOWN_MARGIN_C
    heat, slow, shut = (
        number(reading, s) for s in ("temperature_c", "temperature_slowdown_c", "temperature_shutdown_c")
    )
    if heat is None:
        return None, None
    return None if not slow else slow - heat, None if not shut else shut - _NEAR_SHUTDOWN_C - heat


def _hot(
    reading: Observation, rule: str, severity: Severity, remedy: Remedy, message: str, confirm_s: float,
    limits: Limits, holds_only: bool = False,
) -> Finding:  # fmt: skip
    heat = number(reading, "temperature_c")
    said = message if heat is None else f"{heat:.0f} °C, {message}"
    evidence = Evidence(reading.at, reading.source, said)
    return Finding(
        rule, reading.pci, severity, remedy, message, evidence, reading.seen, "nvml",
        confirm_s=confirm_s, clear_s=limits.temperature_clear_s, holds_only=holds_only,
    )  # fmt: skip
