"""What other controllers act on by its name, and the mark in each that says it is ours: without it, it is another's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from agent.model.fault import Severity
from agent.model.names import ERROR_LABEL, UNHEALTHY
from agent.model.ownership import (
    ACCELERATED,
    ASKED,
    AUTOSCALER_TAINT,
    NOT_ASKED,
    own_condition,
    own_error_label,
    own_taint,
)
from agent.model.world import Condition, Taint
from agent.remediation.case import Case


def error_label(case: Case, noted: bool | None) -> tuple[dict[str, str | None], bool | None]:
    """The label gpu-error as it is to be written, empty if it stays, and what to note of whose it is.

    It stands while a fatal fault does. One that is there already is another's, and so is one that another has changed.
    """
    world, fatal = case.world, case.verdict.fatal
    if case.forgotten:  # reported as ever
        fatal = tuple(fault for fault in case.verdict.faults if fault.finding.severity is Severity.FATAL)
    ours = own_error_label(world.labels, world.conditions, noted)
    if fatal and ERROR_LABEL not in world.labels:
        return {ERROR_LABEL: "true"}, True
    if fatal:
        return {}, ours
    # Beside a condition of ours that says unhealthy, a label that nobody noted would be an older agent's.
    reported = any(fault.finding.severity is Severity.FATAL for fault in case.verdict.faults)
    if case.verdict.blind and UNHEALTHY in world.conditions:  # which stays as it is
        reported |= world.conditions[UNHEALTHY].status == "True"
    return ({ERROR_LABEL: None} if ours else {}), False if reported else None


def spoken_for(presets: Iterable[str], conditions: Mapping[str, Condition]) -> str:
    """Why Karpenter can't be asked; empty if it can, or if nobody wants to."""
    there = conditions.get(ACCELERATED)
    if "eks" not in presets or there is None or own_condition(there):
        return ""
    return f"condition {ACCELERATED} is another's ({there.reason[:64]}): it is left, and asks for no other node"


def beside_hard(presets: Iterable[str], taints: Iterable[Taint]) -> tuple[Taint, ...]:
    """What stands beside our hard taint, for its time; where another has said the same already, nothing of ours."""
    theirs = any(taint.key == AUTOSCALER_TAINT.key and not own_taint(taint) for taint in taints)
    return (AUTOSCALER_TAINT,) if "cluster-autoscaler" in presets and not theirs else ()


def accelerated(presets: Iterable[str], conditions: Mapping[str, Condition], asked: bool) -> tuple[Condition, ...]:
    """False while a replacement is asked for, True after it; a node that never had it from us doesn't get it."""
    there = conditions.get(ACCELERATED)
    if there and not own_condition(there):
        return ()
    if asked and "eks" in presets:
        return (Condition(ACCELERATED, "False", ASKED, "the node is drained, and to be replaced"),)
    return (Condition(ACCELERATED, "True", NOT_ASKED, "no replacement is asked for"),) if there else ()
