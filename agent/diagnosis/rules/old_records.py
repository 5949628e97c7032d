"""What the kernel logged before the agent's first start: nothing by itself, and what it says where it still shows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from agent.config.limits import Limits
from agent.config.source_index import GPUS
from agent.diagnosis.history import History
from agent.diagnosis.rules import kernel, presence, recovery
from agent.model.fault import Finding, Severity
from agent.model.observation import Observation, Signal


def find(history: History, limits: Limits) -> Iterator[Finding]:
    """Never worse than what speaks for the record today; a record that names no GPU degrades at most.

    Xids are in ``xid``, and an address that NVML doesn't enumerate is in ``presence``.
    """
    if not history.past:
        return
    asking = {
        pci: bad
        for pci in {*history.readings, *history.lost, *history.resets}
        if (bad := recovery.asks(history, pci)) is not None
    }
    alive, gone = history.alive.get(GPUS), presence.gone(history)
    for record in history.past.values():
        for finding in _as_news(history, record, limits):
            if record.pci and record.signal is not Signal.SXID:
                if (bad := asking.get(record.pci)) is not None:
                    yield replace(finding, severity=min(finding.severity, bad))
            elif asking:
                yield replace(finding, severity=min(finding.severity, Severity.DEGRADED))
            elif gone and alive:  # as long as for those themselves: driver roll-outs pass sooner
                milder = min(finding.severity, Severity.DEGRADED)
                yield replace(finding, severity=milder, confirm_s=limits.missing_confirm_s, arrived=alive.arrived)


def fault_ids(record: Observation) -> set[str]:
    """Of the faults that the record may speak for."""
    ids = {finding.id for finding in _as_news(History(), record, Limits())}
    return ids | {f"xid-{record.value}@{record.pci}", f"{presence.MISSING.rule}@{record.pci}"}


def _as_news(history: History, record: Observation, limits: Limits) -> Iterator[Finding]:
    """What would be found if the record had come just now."""
    if record.signal is Signal.LOST:
        yield presence.LOST.found(record, limits)
    yield from kernel.find(replace(history, fresh=(record,)), limits)
