"""The driver's own recovery action: NVML's field 230, and the kernel log's Xid 154."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from agent.config.limits import Limits
from agent.config.source_index import GPUS
from agent.diagnosis.history import ACTION_XID, History, number
from agent.diagnosis.row import TABLE, Row
from agent.model.fault import Finding, Severity
from agent.model.observation import Observation, Signal
from agent.model.remedy import Remedy

# NVML_GPU_RECOVERY_ACTION_*. An action that is not listed asks for a human: DCGM 4.6 rejects 5 to 7, we don't.
ACTIONS = {
    1: (Severity.FATAL, Remedy.RESET_GPU, "reset the GPU"),
    2: (Severity.FATAL, Remedy.REBOOT_NODE, "reboot the node"),
    3: (Severity.DEGRADED, Remedy.RESET_GPU, "drain peer-to-peer traffic"),
    4: (Severity.DEGRADED, Remedy.RESET_GPU, "drain and reset the GPU"),
    5: (Severity.DEGRADED, Remedy.CONTACT_SUPPORT, "recover the IMEX domain"),
    6: (Severity.DEGRADED, Remedy.CONTACT_SUPPORT, "reset the GPU's bus"),
    7: (Severity.FATAL, Remedy.REBOOT_NODE, "reboot the system"),
}
_WORDS = {0: "nothing", **{action: words for action, (_, _, words) in ACTIONS.items()}}
OTHER = (Severity.DEGRADED, Remedy.CONTACT_SUPPORT, "an action this agent does not know")
ROW = TABLE["recovery-action"]
_LOGGED = Row(ROW.rule, ROW.severity, ROW.remedy, ROW.meaning)  # by the kernel log alone: latched


def asks(history: History, pci: str) -> Severity | None:
    """How bad the GPU is by NVML's word of now: it doesn't answer, or the driver asks for something; else None."""
    if pci in history.lost or pci in history.resets:
        return Severity.FATAL
    action = int(history.number(pci, "recovery_action") or 0)
    return ACTIONS.get(action, OTHER)[0] if action else None


def tells(history: History, xid: Observation) -> bool:
    """Whether an Xid says nothing but that the driver asks for something, which is found here."""
    return xid.value == ACTION_XID and bool(number(history.with_details(xid, ACTION_XID), "recovery_action"))


def told(xid: Observation) -> str:
    """What the driver asks for by an Xid; empty where it says nothing of that."""
    action = number(xid, "recovery_action")
    return "" if action is None else f"{action:.0f}: {_WORDS.get(int(action), OTHER[2])}"


def find(history: History, limits: Limits) -> Iterator[Finding]:
    for reading in history.suspects.values():
        if action := int(number(reading, "recovery_action") or 0):
            yield _finding(ROW, reading, action, limits)
    for observation in history.fresh:
        action = int(number(observation, "recovery_action") or 0)
        if observation.signal is Signal.XID and action:
            said = _finding(_LOGGED, observation, action, limits)
            if history.number(observation.pci, "recovery_action") is None:
                yield said
            else:  # believed at once, and ended by NVML, which reads the action itself
                yield replace(said, witness=GPUS, clear_s=limits.flag_confirm_s, signals=ROW.signals)


def _finding(row: Row, observation: Observation, action: int, limits: Limits) -> Finding:
    severity, remedy, words = ACTIONS.get(action, OTHER)
    message = f"the driver's recovery action is {action}: {words}"
    return row.found(observation, limits, message, severity=severity, remedy=remedy)
