"""Sources that can't see or don't speak. Blindness is reported; it alone never withdraws a node."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from agent.limits import Limits
from agent.model import Evidence, Failure, Finding, Remedy, Severity
from agent.policy.history import SECOND, History
from agent.policy.row import Row

_SILENT = {
    source: Row(f"{source}-silent", severity, Remedy.CONTACT_SUPPORT, f"the source {source} has said nothing")
    for source, severity in (("nvml", Severity.DEGRADED), ("kmsg", Severity.DEGRADED), (SECOND, Severity.NOTICE))
}
_FAILED: dict[str, Row] = {
    Failure.DRIVER_NOT_LOADED: Row("driver-not-loaded", Severity.DEGRADED, Remedy.REBOOT_NODE,
                                   "the NVIDIA kernel module is not loaded"),
    Failure.LIBRARY_MISMATCH: Row("driver-mismatch", Severity.DEGRADED, Remedy.REBOOT_NODE,
                                  "the driver's library and kernel module are of different versions"),
    Failure.HUNG: Row("driver-hung", Severity.DEGRADED, Remedy.REBOOT_NODE,
                      "a call into the driver does not come back"),
}  # fmt: skip
ROWS = (*_SILENT.values(), *_FAILED.values())
# A library that was never injected is this pod's configuration, not the node's health; nor is standing aside.
_CONFIGURATION = (Failure.NO_LIBRARY, Failure.NO_PERMISSION, Failure.ASIDE)


def find(history: History, limits: Limits) -> Iterator[Finding]:
    for source in {**history.heard, **history.failed}:
        failed = history.failed.get(source)
        if failed and failed.value in _CONFIGURATION:
            continue
        if failed and failed.value == Failure.ABSENT and source not in history.heard:
            continue  # it never was there
        silent_s = history.now - history.heard.get(source, history.began)
        hung = failed is not None and failed.value == Failure.HUNG
        limit_s = 3 * limits.silent_s if hung or not failed else limits.driver_confirm_s
        if silent_s > limit_s:
            row = _FAILED.get(str(failed.value)) if failed and source != SECOND else None
            row = row or _SILENT[source]
            message = failed.raw if failed and not hung else f"{row.meaning} for over {limit_s:.0f} s"
            evidence = Evidence(failed.at if failed else 0.0, source, failed.raw if failed else message)
            yield Finding(
                row.rule, "", row.severity, row.remedy, message, evidence, history.now, "", clear_s=0.0,
            )  # fmt: skip


def blind(history: History, expected: Iterable[str], silent_s: float) -> Iterator[tuple[str, str]]:
    """Every source that should speak and doesn't, with the reason in a sentence."""
    for source in expected:
        failed = history.failed.get(source)
        if failed:
            yield source, failed.raw or str(failed.value)
        elif source not in history.alive:  # which ends a poll: by then each GPU was read
            yield source, "not heard yet"
        elif history.now - history.heard[source] > silent_s:
            yield source, f"silent for {history.now - history.heard[source]:.0f} s"
