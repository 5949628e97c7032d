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
from agent.model.text import quoted


def find(history: History, limits: Limits) -> Iterator[Finding]:
    """Never worse than what speaks for the record today; a record that names no GPU degrades at most.

    Xids are in ``xid``.
    """
    if not history.past:
        return
    heard = {*history.readings, *history.lost, *history.resets}
    asking = {pci: bad for pci in heard if (bad := recovery.asks(history, pci)) is not None}
    gone = presence.gone(history)
    for record in history.past.values():
        for finding in _as_news(history, record, limits):
            gpu = record.pci if record.signal is not Signal.SXID else ""
            if finding.severity is Severity.NOTICE:
                continue
            if gpu in asking or (asking and not gpu):
                yield _milder(finding, record, asking.get(gpu, Severity.DEGRADED))
            elif gpu in gone or (gone and not gpu):
                yield _as_long_as_it_is_gone(_milder(finding, record, Severity.DEGRADED), history, limits)


def fault_ids(record: Observation) -> set[str]:
    """Of the faults that the record may speak for."""
    ids = {finding.id for finding in _as_news(History(), record, Limits())}
    return ids | {f"xid-{record.value}@{record.pci}", f"{presence.MISSING.rule}@{record.pci}"}


def _as_news(history: History, record: Observation, limits: Limits) -> Iterator[Finding]:
    """What would be found if the record had come just now."""
    if record.signal is Signal.LOST:
        yield presence.LOST.found(record, limits)
    yield from kernel.find(replace(history, fresh=(record,)), limits)


def _milder(finding: Finding, record: Observation, most: Severity) -> Finding:
    where = f" at {finding.pci}" if finding.pci else ""
    message = f"{finding.message}{where}; before the agent's start the kernel said: {quoted(record.raw)}"
    return replace(finding, severity=min(finding.severity, most), message=message)


def _as_long_as_it_is_gone(finding: Finding, history: History, limits: Limits) -> Finding:
    """Confirmed as late as the GPU that is missing, for driver roll-outs pass sooner; that GPU's ends with it too."""
    finding = replace(finding, confirm_s=limits.missing_confirm_s, arrived=history.alive[GPUS].arrived)
    if not finding.pci:
        return finding
    return replace(finding, clear_s=limits.flag_confirm_s, witness=GPUS, signals=presence.MISSING.signals)
