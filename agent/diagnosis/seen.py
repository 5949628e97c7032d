"""Until when a source counts as heard and a GPU as read, and whether a fault could have shown. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import inf

from agent.config.limits import Limits
from agent.config.source_index import GPUS
from agent.diagnosis.cards import missing, silent
from agent.diagnosis.history import History, number, under_way_s
from agent.model.fault import Fault, Reason
from agent.model.observation import Observation


def heard_until(history: History, source: str, silent_s: float) -> float:
    """Until when a source was heard, monotonic seconds: it finished a poll, or told of a slow one that is under way.

    Only of one that began soon after the last was finished: a source that crashes in each poll finishes none.
    """
    heard, slow = history.heard.get(source, history.began), history.slow.get(source)
    return slow.arrived if slow and slow.arrived - under_way_s(slow) - heard <= silent_s else heard


def lately_s(history: History, silent_s: float) -> float:
    """How old a GPU's last reading may be and still tell of now: where polls take long, the next one's comes late."""
    return silent_s + (history.poll_s(GPUS) or 0.0)


def hung(history: History) -> Iterator[tuple[str, Observation]]:
    """GPUs at which a call into the driver hangs, with the word that said so; not of one that left meanwhile."""
    return ((pci, hung) for pci, hung in history.hung.items() if read_until(history, pci, 0.0) < inf)


def unread(history: History, silent_s: float) -> Iterator[str]:
    """GPUs that were silent for so long when NVML's last poll finished; none while it says that it can't see."""
    alive = history.alive.get(GPUS)
    if alive is None or GPUS in history.failed:
        return
    aged_s = silent_s + (number(alive, "poll_ms") or 0.0) / 1000  # in a slow poll the first GPU's is old in the end
    for pci in {**history.cards, **history.readings, **silent(alive)}:
        reading = history.readings.get(pci)
        if reading and alive.arrived - reading.arrived <= aged_s:  # as nearly always
            continue
        if max(read_until(history, pci, aged_s), history.began + silent_s) < alive.arrived:
            yield pci


def ended(history: History, name: str, why: Reason, silent_s: float) -> float:
    """Since when this source or GPU can't be seen, monotonic seconds, as far as that goes by time alone."""
    until = read_until(history, why.pci, silent_s) if why.pci else heard_until(history, name, silent_s) + silent_s
    return until if 0.0 < until < history.now else history.now


def read_until(history: History, pci: str, silent_s: float) -> float:
    """Until when (monotonic seconds) a GPU counts as read; one that was never read doesn't count so at any time.

    Without end where nobody waits for a reading: of the node itself, and of a GPU that is lost, asks for nothing but a
    reset, is missing from the enumeration, was given away, or is read in another slot.
    """
    card, reading, alive = history.cards.get(pci), history.readings.get(pci), history.alive.get(GPUS)
    known = card is not None or (reading is not None and not history.uuid(pci))  # without its card it was given away
    known = known or pci in silent(alive) or pci in history.hung
    if not known or pci in history.lost or pci in history.resets or (alive and pci in dict(missing(alive))):
        return inf
    if reading is None and card and card.uuid in {history.uuid(other) for other in history.readings}:
        return inf
    return reading.arrived + silent_s if reading else -inf


def could_show_s(fault: Fault, was: History, since: float, now: float, limits: Limits) -> float:
    """Seconds since the last round in which the fault would have shown, however many rounds there were.

    ``since``: what was before that, monotonic seconds, doesn't count.
    """
    finding = fault.finding
    until = now
    if finding.witness:
        if finding.witness in was.failed:
            return 0.0
        until = min(until, heard_until(was, finding.witness, limits.silent_s) + limits.silent_s)
    if finding.witness == GPUS:
        until = min(until, read_until(was, finding.pci, limits.silent_s))
    if finding.signals and finding.pci:
        reading = was.readings.get(finding.pci)
        if reading is None or finding.pci in was.lost or any(number(reading, s) is None for s in finding.signals):
            return 0.0
        if reading.arrived <= fault.last:
            return 0.0  # what was read before an event says nothing about it
        until = min(until, reading.arrived + limits.silent_s)
    return max(0.0, until - max(was.now, since)) if was.now else 0.0


def could_show(fault: Fault, history: History, unseen: Mapping[str, Reason], limits: Limits) -> bool:
    """Whether the fault would show if it still were: its witness speaks, and the GPU gives the very readings."""
    finding = fault.finding
    if finding.witness in unseen:
        return False
    if finding.witness == GPUS and history.now > read_until(history, finding.pci, limits.silent_s):
        return False
    if not (finding.signals and finding.pci):
        return True
    reading = history.readings.get(finding.pci)
    if reading is None or finding.pci in history.lost or history.now - reading.arrived > limits.silent_s:
        return False
    return all(number(reading, signal) is not None for signal in finding.signals)
