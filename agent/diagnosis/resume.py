"""A life of the agent begins with what the last one stored, judged by this one's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from agent.config.limits import Limits
from agent.diagnosis.judge import Memory
from agent.diagnosis.overrides import resettled
from agent.remediation.stored import MalformedError, load


def resumed(memory: Memory, text: str | None, now: float, limits: Limits, labels: Mapping[str, str]) -> Memory:
    """``text`` is the Node's annotation; one that can't be understood restores nothing, and the plan says so."""
    try:
        stored = None if text is None else load(text, now)
    except MalformedError:
        stored = None
    if stored:
        old = memory.history
        history = replace(old, boots={"kmsg": stored.boot_id, **old.boots}, kernel_seq=stored.kernel_seq,
                          cards={**stored.cards, **old.cards})  # fmt: skip
        faults = {
            # Its evidence is older than whatever this life has read, but for what this life saw of it itself.
            key: replace(fault, last=mine.last, counters=mine.counters, fell=mine.fell)
            if (mine := memory.faults.get(key))
            else replace(fault, last=0.0)
            for key, fault in ((fault.finding.id, fault) for fault in stored.faults)
        }
        memory = Memory(history, {**memory.faults, **faults}, stored.onsets, stored.dismissed)
    return replace(memory, faults=resettled(memory.faults, memory.history, limits, labels))
