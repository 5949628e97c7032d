"""Errors that a second word of the driver makes milder, and for how long it is waited for. Pure."""

from __future__ import annotations

from agent.diagnosis.history import (
    ACTION_XID,
    LOOKED_AGAIN_S,
    NVLINK5_XIDS,
    SAME_EVENT_S,
    SECOND_WORD_S,
    History,
    number,
)
from agent.diagnosis.row import Row
from agent.model.fault import Severity
from agent.model.observation import Observation

_CONTAINED, _UNCONTAINED, _TOGETHER_S = 94, 95, 60.0
# NVML's architecture → product names; Hopper has no other chip, and a name may be a vendor's own.
_CONTAIN = {7: ("A100", "A800", "A30"), 9: ("",), 10: ("B100", "B200", "B300")}
_DRAINS = (3, 4)  # recovery actions that let running work go on until it has left


def is_due(history: History, xid: Observation) -> bool:
    """Whether the second word on it may still come: a node is not withdrawn for want of two seconds."""
    return history.now - xid.arrived < SECOND_WORD_S


def should_have_come(history: History, xid: Observation) -> bool:
    """Whether its time was over just now, so that the first word is to be judged again."""
    return SECOND_WORD_S <= history.now - xid.arrived <= SECOND_WORD_S + LOOKED_AGAIN_S


def contains_errors(reading: Observation | None) -> bool:
    """Error containment exists on GA100, GH100 and Blackwell data-centre chips, not on GA10x, Ada and workstations."""
    architecture, name = number(reading, "architecture"), str(reading.values.get("name") or "") if reading else ""
    return any(model in name for model in _CONTAIN.get(int(architecture or 0), ()))


def contained(history: History, pci: str) -> bool:
    """Whether the GPU's last uncorrectable error was kept to its victim: Xid 94 and no 95 about that time."""
    error = history.uncorrectable.get(pci)
    if error is None or not contains_errors(history.readings.get(pci)):
        return False
    near = {
        code: any(abs(at - error.arrived) <= _TOGETHER_S for at in history.times(pci, code))
        for code in (_CONTAINED, _UNCONTAINED)
    }
    return near[_CONTAINED] and not near[_UNCONTAINED]


def may_be_contained(history: History, xid: Observation) -> bool:
    """It was, or the GPU had no time yet to say so."""
    if history.times(xid.pci, _UNCONTAINED) or not contains_errors(history.readings.get(xid.pci)):
        return contained(history, xid.pci)
    return is_due(history, xid) or contained(history, xid.pci)


def may_only_drain(history: History, xid: Observation, row: Row) -> bool:
    """Whether a driver that tells a recovery action asks only to drain the GPU, or had no time yet to tell it."""
    if xid.value not in NVLINK5_XIDS or row.severity is not Severity.FATAL:
        return False
    if history.number(xid.pci, "recovery_action") is None:
        return False
    told = history.detailed.get((xid.pci, ACTION_XID), ())
    since = [one for one in told if one.arrived >= xid.arrived - SAME_EVENT_S]
    action = number(since[-1], "recovery_action") if since else None
    return action in _DRAINS or (not action and is_due(history, xid))
