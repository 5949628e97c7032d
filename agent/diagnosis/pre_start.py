"""What this life of the agent knows of a fault only from the kernel's record from before it began. Pure."""

from __future__ import annotations

from dataclasses import replace

from agent.config.source_index import GPUS, KERNEL_LOG
from agent.diagnosis.cards import off_the_bus
from agent.diagnosis.history import History
from agent.diagnosis.rules.recovery import asks
from agent.model.fault import Fault


def doubted(fault: Fault, old: Fault | None, history: History, began_at: float) -> Fault:
    """Whether only the kernel's record from before the agent's start (Unix seconds) speaks for the fault.

    Asked once of each record, as it comes: both times are then of one clock, which may step a moment later.

    Such a fault may be that of an agent that died before it could write it down: then the driver asks for something,
    or the GPU does not answer.
    """
    pci, evidence = fault.finding.pci, fault.finding.evidence
    asked = asks(history, pci) is not None or off_the_bus(history.alive.get(GPUS), history.readings, pci)
    before = evidence.source == KERNEL_LOG and evidence.at < began_at
    if old:
        before = old.pre_start and (before or evidence == old.finding.evidence)
    pre_start = bool(pci) and before and not asked
    return fault if pre_start is fault.pre_start else replace(fault, pre_start=pre_start)
