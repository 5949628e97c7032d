"""A life of the agent begins with what the last one stored, judged by this one's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from agent.config.limits import Limits
from agent.config.source_index import KERNEL_LOG
from agent.diagnosis.judge import Memory
from agent.diagnosis.overrides import resettled
from agent.diagnosis.rules import ROWS
from agent.model.fault import Fault, Remembered


def resumed(memory: Memory, stored: Remembered | None, limits: Limits, labels: Mapping[str, str]) -> Memory:
    """``stored``: what the last life left, or None; its faults' times are this life's, of the moment it was read."""
    if stored:
        old = memory.history
        history = replace(
            old,
            boots={KERNEL_LOG: stored.boot_id, **old.boots},
            kernel_seq=stored.kernel_seq,
            cards={**stored.cards, **old.cards},
        )
        faults = {
            # Its evidence is older than whatever this life has read, but for what this life saw of it itself.
            key: replace(fault, last=mine.last, counters=mine.counters, fell=mine.fell)
            if (mine := memory.faults.get(key))
            else replace(fault, last=0.0)
            for key, fault in ((fault.finding.id, _judged(fault)) for fault in stored.faults)
        }
        memory = Memory(history, {**memory.faults, **faults}, stored.onsets, stored.dismissed)
    return replace(memory, faults=resettled(memory.faults, memory.history, limits, labels))


def _judged(fault: Fault) -> Fault:
    """With the readings by which its rule sees it, which no life hands on."""
    row = ROWS.get(fault.finding.rule)
    return replace(fault, finding=replace(fault.finding, signals=row.signals)) if row else fault
