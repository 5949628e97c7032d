"""What a person's dismissal covers: a state while the annotation stands, a record from before, no new event. Pure."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from agent.config.source_index import KERNEL_LOG, SOURCES
from agent.diagnosis.history import History
from agent.diagnosis.rules import ROWS, silence
from agent.diagnosis.rules.old_records import fault_ids
from agent.diagnosis.rules.presence import LOST
from agent.model.fault import Finding, Reason
from agent.model.observation import Failure
from agent.model.remedy import LADDER

# These are found again at each look, though their rows name no reading and no time that would show it.
_STATES = {LOST.rule, silence.UNREAD.rule, *(row.rule for row in silence.ROWS)}


def dismissed(finding: Finding, obeyed: Collection[str], began_at: float) -> bool:
    """Whether the dismissal of its id, which the Node bears, means this finding too.

    ``obeyed`` are the words that an earlier life obeyed; this one began at ``began_at``, Unix seconds. What the kernel
    logged before that a person may have seen, and meant by a word that is news as well.
    """
    before = finding.evidence.source == KERNEL_LOG and finding.evidence.at < began_at
    return lasts(finding) or (before and finding.id not in obeyed)


def lasts(finding: Finding) -> bool:
    """Whether each poll finds it anew, as it does states; an event has passed."""
    rule, row = finding.rule, ROWS.get(finding.rule)
    confirmed = row is not None and row.confirm and not row.signals
    return bool(finding.signals or confirmed) or rule in _STATES or rule.startswith("dcgm-")


def ends_when_cured(finding: Finding) -> bool:
    """Whether a remedy is known for it, whose proof ends an event before its time is over."""
    return finding.remedy in LADDER and not lasts(finding)


def without(history: History, words: Collection[str]) -> History:
    """Without the records from before the first start whose faults a person dismissed: they are found no more."""
    if not (history.past and words):
        return history
    past = {said: record for said, record in history.past.items() if not fault_ids(record).intersection(words)}
    return replace(history, past=past)


def with_dismissal(name: str, why: Reason, words: Collection[str]) -> Reason:
    """Why it can't be seen, with the dismissal of its fault, which makes nothing seen."""
    gpu = silence.HUNG if why.failure is Failure.HUNG else silence.UNREAD
    rule = gpu.rule if why.pci else SOURCES[name].silent if name in SOURCES else ""
    fault = f"{rule}@{why.pci or 'node'}"
    if fault not in words:
        return why
    return replace(why, words=f"{why.words}; a person dismissed {fault}, and it stays unknown until it is seen again")
