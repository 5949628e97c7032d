"""The driver's own trace as a witness: what it confirms of the kernel log, and what it vetoes. Pure.

Whoever can make the kernel log lie can't make the trace, which no process writes. It is believed to be complete only
once it told an error that the kernel log told too, in this boot. From then on an error that the kernel log alone tells
waits for the trace, or for NVML. While there is no trace nothing waits.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto
from math import inf

from agent.config.source_index import GPUS, KERNEL_LOG, TRACE
from agent.diagnosis.history import History, Said
from agent.model.observation import Observation, Signal

TOGETHER_S = 5.0  # within so long the two tell the same error
_TOLD_S = 2.0  # so long the trace may take
_SILENT_S = 10.0  # without a word for so long it vetoes nothing: it says every second that it is there
_ERRORS = (Signal.XID, Signal.SXID)
_WITNESSES = (KERNEL_LOG, TRACE, GPUS)


class Word(Enum):
    """What becomes of an error that the kernel log tells."""

    BELIEVED = auto()
    WAITS = auto()
    VETOED = auto()


def said(o: Observation) -> Said:
    return o.signal, o.pci, o.value


def told(o: Observation) -> bool:
    """Whether it is an error that both tell; a drill's record is the kernel log's alone."""
    return o.signal in _ERRORS and o.source in _WITNESSES and not (o.drill or o.past)


def confirms(o: Observation, heard_of: Mapping[tuple[str, Said], float]) -> bool:
    """Whether the trace and the kernel log have now both told this error."""
    other = {TRACE: KERNEL_LOG, KERNEL_LOG: TRACE}.get(o.source, "")
    return o.arrived - heard_of.get((other, said(o)), -inf) <= TOGETHER_S


def word(o: Observation, history: History) -> Word:
    """On an error that the kernel log told, by what was heard up to now."""
    by_others = (history.heard_of.get((source, said(o)), -inf) for source in (TRACE, GPUS))
    if max(by_others) >= o.arrived - TOGETHER_S or o.pci in history.lost or o.pci in history.resets:
        return Word.BELIEVED
    alive, age_s = history.alive.get(TRACE), history.now - o.arrived
    trusted = history.trusted and history.trusted == history.boots.get(KERNEL_LOG)
    if not trusted or alive is None or TRACE in history.failed or history.trace_gap >= o.arrived - TOGETHER_S:
        return Word.BELIEVED
    if alive.arrived - o.arrived >= _TOLD_S:  # it was there all the while, and told nothing
        return Word.VETOED
    return Word.WAITS if age_s <= _SILENT_S and o.arrived - alive.arrived <= _SILENT_S else Word.BELIEVED
