"""What was seen only while the GPUs were somebody else's: the upgrade of a driver makes lines that look fatal. Pure."""

from __future__ import annotations

from dataclasses import replace

from agent.diagnosis.history import History, number
from agent.model.fault import Fault


def only_aside(fault: Fault, old: Fault | None, aside: bool, history: History) -> Fault:
    """The fault, and whether only such a time speaks for it. ``aside``: this is one; ``old``: the fault a round ago.

    The same again after it is a present witness, and so is NVML, once it reads that the GPU doesn't answer or that the
    driver asks for something.
    """
    news = old is None or fault.last > old.last
    worse = old is None or fault.finding.severity > old.finding.severity
    only = fault.aside or worse if aside else fault.aside and not (news or _asks_since(fault, history))
    return fault if only is fault.aside else replace(fault, aside=only)


def _asks_since(fault: Fault, history: History) -> bool:
    pci, reading = fault.finding.pci, history.readings.get(fault.finding.pci)
    words = (history.lost.get(pci), history.resets.get(pci), reading if number(reading, "recovery_action") else None)
    return any(word is not None and word.arrived > fault.last for word in words)
