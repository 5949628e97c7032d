"""What other controllers act on by its name, and the mark in each that says it is ours: without it, it is another's."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from agent.model.fault import Severity
from agent.model.names import ERROR_LABEL, UNHEALTHY
from agent.model.neighbours import ASKED, NEIGHBOURS, NOT_ASKED
from agent.model.ownership import own_condition, own_error_label, own_taint
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


def spoken_for(presets: Iterable[str], conditions: Mapping[str, Condition]) -> tuple[str, ...]:
    """Why a neighbour that is chosen can't be asked for another node, a sentence each."""
    theirs = (conditions.get(NEIGHBOURS[preset].condition) for preset in presets)
    return tuple(
        f"condition {one.type} is another's ({one.reason[:64]}): it is left, and asks for no other node"
        for one in theirs
        if one and not own_condition(one)
    )


def beside_hard(presets: Iterable[str], taints: Iterable[Taint]) -> tuple[Taint, ...]:
    """What stands beside our hard taint, for its time; where another has said the same already, nothing of ours."""
    theirs = {taint.key for taint in taints if not own_taint(taint)}
    return tuple(taint for preset in presets if (taint := NEIGHBOURS[preset].taint) and taint.key not in theirs)


def beside_request(presets: Collection[str], conditions: Mapping[str, Condition], asked: bool) -> tuple[Condition, ...]:
    """False while a replacement is asked for, True after it; a node that never had it from us doesn't get it."""
    wanted = []
    for preset, row in NEIGHBOURS.items():
        there = conditions.get(row.condition)
        if not row.condition or (there and not own_condition(there)):
            continue
        if asked and preset in presets:
            wanted.append(Condition(row.condition, "False", ASKED, "the node is drained, and to be replaced"))
        elif there:
            wanted.append(Condition(row.condition, "True", NOT_ASKED, "no replacement is asked for"))
    return tuple(wanted)
