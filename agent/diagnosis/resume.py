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


def resumed(
    memory: Memory, stored: Remembered | None, limits: Limits, labels: Mapping[str, str], aside: bool = False
) -> Memory:
    """``stored``: what the last life left, or None; its faults' times are this life's, of the moment it was read.

    ``aside``: the first look finds that the GPUs are somebody else's, so they were for all that this life saw.
    """
    if aside:
        memory = replace(memory, faults={key: replace(fault, aside=True) for key, fault in memory.faults.items()})
    if stored:
        old = memory.history
        boot = old.boots.get(KERNEL_LOG, stored.boot_id)
        there = (old.kernel_seq, stored.kernel_seq if boot == stored.boot_id else None)
        seen = memory.faults if stored.kernel_seq is None else _without_past(memory)
        history = replace(
            old,
            boots={KERNEL_LOG: boot, **old.boots},
            kernel_seq=max((seq for seq in there if seq is not None), default=None),
            cards={**stored.cards, **old.cards},
            past=old.past if stored.kernel_seq is None else {},
        )
        faults = {
            # Its evidence is older than whatever this life has read, but for what this life saw of it itself.
            key: replace(fault, last=mine.last, counters=mine.counters, fell=mine.fell)
            if (mine := seen.get(key))
            else replace(fault, last=0.0)
            for key, fault in ((fault.finding.id, _judged(fault)) for fault in stored.faults)
        }
        memory = Memory(history, {**seen, **faults}, stored.onsets, stored.dismissed, stored.dismissed)
    return replace(memory, faults=resettled(memory.faults, memory.history, limits, labels))


def _without_past(memory: Memory) -> Mapping[str, Fault]:
    """Without the faults for which only past records speak: these are news by now, or the last life has judged them."""
    past = {(o.source, o.at, o.raw) for o in memory.history.past.values()}
    spoken = ((key, fault, fault.finding.evidence) for key, fault in memory.faults.items())
    return {key: fault for key, fault, by in spoken if (by.source, by.at, by.raw) not in past}


def _judged(fault: Fault) -> Fault:
    """With the readings by which its rule sees it, which no life passes on."""
    row = ROWS.get(fault.finding.rule)
    return replace(fault, finding=replace(fault.finding, signals=row.signals)) if row else fault
