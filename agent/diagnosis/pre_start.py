"""What this life of the agent knows of a fault only from the kernel's record from before it began. Pure."""

from __future__ import annotations

from dataclasses import replace

from agent.config.source_index import KERNEL_LOG
from agent.diagnosis.history import History
from agent.model.fault import Fault


def doubted(fault: Fault, known: bool, history: History, began_at: float) -> Fault:
    """Whether only the kernel's record from before the agent's start (Unix seconds) speaks for the fault.

    Such a fault may be that of an agent that died before it could write it down: then the driver asks for something,
    or the GPU does not answer.
    """
    pci, evidence = fault.finding.pci, fault.finding.evidence
    asks = pci in history.lost or pci in history.resets or bool(history.number(pci, "recovery_action"))
    before = evidence.source == KERNEL_LOG and evidence.at < began_at
    pre_start = bool(pci) and before and (fault.pre_start or not known) and not asks
    return fault if pre_start is fault.pre_start else replace(fault, pre_start=pre_start)
