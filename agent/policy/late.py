"""What this life of the agent knows of a fault only from before it began, and whether the GPU was reset since. Pure.

A restored API server forgets a repair that is done, its Job included, and a new process has seen none of it. The GPU
itself still tells, in two ways: its counters began anew since the fault, and a driver that asks for nothing more.
"""

from __future__ import annotations

from dataclasses import replace

from agent.model import Fault
from agent.policy.history import History, number

_KERNEL = "kmsg"


def doubted(fault: Fault, known: bool, history: History, began_at: float) -> Fault:
    """Whether only the kernel's record from before the agent's start (Unix seconds) speaks for the fault.

    Such a fault may be that of an agent that died before it could write it down: then the driver asks for something,
    or the GPU does not answer.
    """
    pci, evidence = fault.finding.pci, fault.finding.evidence
    asks = pci in history.lost or pci in history.resets or bool(history.number(pci, "recovery_action"))
    before = evidence.source == _KERNEL and evidence.at < began_at
    late = bool(pci) and before and (fault.late or not known) and not asks
    return fault if late is fault.late else replace(fault, late=late)


def energy(old: Fault | None, history: History, pci: str) -> float | None:
    """The GPU's energy counter at the fault, or what it began anew from when the fault came again after that."""
    now = number(history.readings.get(pci), "energy_j")
    before = old.energy_j if old else None
    return now if before is None or (now is not None and now < before) else before


def energy_since(fault: Fault, history: History) -> float | None:
    """The same for a fault that stands: what may have come after a reset has the counters from after it."""
    pci = fault.finding.pci
    after = history.epochs.get(pci, fault.last) < fault.last
    return energy(fault, history, pci) if after else fault.energy_j


def counts_anew(fault: Fault, history: History) -> bool:
    """Whether the GPU's energy counter began anew since the fault, also while no agent looked.

    Without persistence mode it does so whenever the last client leaves, and we were one: then it tells nothing.
    """
    reading = history.readings.get(fault.finding.pci)
    now = number(reading, "energy_j")
    if fault.finding.pci in history.epochs:
        return False  # this life saw them begin anew, and when
    kept = number(reading, "persistence_mode") == 1
    return kept and fault.energy_j is not None and now is not None and now < fault.energy_j
