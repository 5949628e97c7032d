"""Sources that can't see or don't speak. Blindness is reported; it alone never withdraws a node."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from agent.config import Limits
from agent.model import Evidence, Failure, Finding, Remedy, Severity
from agent.policy.history import History

# A driver roll-out unloads the driver for minutes: no fault before this.
_FAILED_DEGRADED_S = 600.0
# A library that was never injected is this pod's configuration, not the node's health.
_CONFIGURATION = (Failure.NO_LIBRARY, Failure.NO_PERMISSION)


def find(history: History, limits: Limits) -> Iterator[Finding]:
    for source, heard in history.heard.items():
        silent_s, failed = history.now - heard, history.failed.get(source)
        if failed and failed.value in _CONFIGURATION:
            continue
        limit_s = _FAILED_DEGRADED_S if failed else 3 * limits.silent_s
        if silent_s > limit_s:
            message = failed.raw if failed else f"{source} has said nothing for over {limit_s:.0f} s"
            yield Finding(
                f"{source}-silent", "", Severity.DEGRADED, Remedy.CONTACT_SUPPORT, message,
                Evidence(failed.at if failed else 0.0, source, message), history.now, "", clear_s=0.0,
            )  # fmt: skip


def blind(history: History, expected: Iterable[str], silent_s: float) -> Iterator[tuple[str, str]]:
    """Every source that should speak and doesn't, with the reason in a sentence."""
    for source in expected:
        failed = history.failed.get(source)
        if failed:
            yield source, failed.raw or str(failed.value)
        elif source not in history.heard:
            yield source, "not heard yet"
        elif history.now - history.heard[source] > silent_s:
            yield source, f"silent for {history.now - history.heard[source]:.0f} s"
