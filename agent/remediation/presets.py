"""What other controllers act on by its name, and the mark in each that says it is ours: without it, it is another's."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256

from agent.model.fault import Severity
from agent.model.names import ERROR_LABEL, HARD_TAINT, UNHEALTHY
from agent.model.neighbours import ASKED, CORDON_MARK, NEIGHBOURS, NOT_ASKED
from agent.model.ownership import asked_labels, own_condition, own_cordon, own_error_label, own_taint
from agent.model.world import Condition, Taint, World
from agent.remediation.case import Case

TAKEN_BACK = "withdrawn "  # so begins what is noted of a request that a receiver is told to be over


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
    # What is noted stays so: the conditions come in a write of their own, and that may never come.
    return ({ERROR_LABEL: None} if ours else {}), False if reported or ours or noted is not None else None


def beside_hard(presets: Iterable[str], taints: Iterable[Taint]) -> tuple[Taint, ...]:
    """What stands beside our hard taint, for its time; where another has said the same already, nothing of ours."""
    theirs = {taint.key for taint in taints if not own_taint(taint)}
    return tuple(taint for preset in presets if (taint := NEIGHBOURS[preset].taint) and taint.key not in theirs)


def cordon(presets: Iterable[str], world: World, taints: Iterable[Taint], once: bool) -> tuple[str | None, bool]:
    """What is to become of the node's cordon beside these taints of ours, as ``Retaint`` has it, and what to note.

    ``once``: whether ours was seen in this withdrawal. It is set once in each: whoever undoes it has undone it.
    """
    hard = next((taint for taint in taints if taint.key == HARD_TAINT and taint.effect == "NoSchedule"), None)
    wanted = hard and any(NEIGHBOURS[preset].cordons for preset in presets)
    if wanted and hard and not (world.cordoned or once):
        return f"{CORDON_MARK}{hard.value}", False
    undo = own_cordon(world.cordon_reason) and not (wanted and world.cordoned)
    return "" if undo else None, bool(wanted and once)


def uncordoned(world: World, once: bool) -> Iterator[str]:
    """That another undid our cordon, for people."""
    if once and world.tainted and not world.cordoned:
        yield "another uncordoned the node: it is left so, and busy pods of Slurm leave at the drain's deadline"


@dataclass(frozen=True, slots=True)
class Request:
    """What is said to whoever replaces a node, while another one is asked for and after it."""

    conditions: tuple[Condition, ...]
    labels: Mapping[str, str | None]
    asked: Mapping[str, str]  # preset → since when, and for which incident, its label asks or its receiver is told


def request(presets: Collection[str], world: World, asking: str, asked: Mapping[str, str]) -> Request:
    """``asking``: since when another node is asked for, and for which incident; empty: for none. ``asked``: as the Node
    has it.

    A condition is False while it is asked for, and True after it. A node for which we never asked doesn't get it.
    """
    conditions, labels, noted = list[Condition](), dict[str, str | None](), dict[str, str]()
    ours = asked_labels(world.labels, asked)
    for preset, row in NEIGHBOURS.items():
        asks, there, label = asking and preset in presets, world.conditions.get(row.condition), row.label
        if row.condition and not (there and not own_condition(there)):
            if asks:
                conditions.append(Condition(row.condition, "False", ASKED, "the node is drained, and to be replaced"))
            elif there:
                conditions.append(Condition(row.condition, "True", NOT_ASKED, "no replacement is asked for"))
        if label and asks and preset in asked and label.key not in ours:  # another took it back, or acts on it
            noted[preset] = asked[preset]
        elif label and asks and (label.key in ours or world.labels.get(label.key, "") == label.before):
            labels[label.key], noted[preset] = label.value, asked.get(preset, asking)
        elif label and label.key in ours:
            labels[label.key] = label.before or None
        if row.posts and (told := _to_tell(world, asking if preset in presets else "", asked.get(preset, ""))):
            noted[preset] = told
    return Request(tuple(conditions), labels, noted)


def _to_tell(world: World, asking: str, told: str) -> str:
    """What a receiver is to be told next. Once a request is taken back, whoever asks again waits until that is taken:
    a receiver that heard it, and whose answer was lost, knows the request by its id and does no more for it.
    """
    withdrawn = told.startswith(TAKEN_BACK)
    if not told or (withdrawn and post_id(world, told.removeprefix(TAKEN_BACK), "withdrawn") in world.posted):
        return asking
    return told if asking or withdrawn else f"{TAKEN_BACK}{told}"


def post_id(world: World, asking: str, word: str) -> str:
    """The same in each life of the agent."""
    return sha256(f"{world.uid} {asking} {word}".encode()).hexdigest()[:32]


def spoken_for(presets: Iterable[str], world: World, asked: Mapping[str, str]) -> Iterator[str]:
    """Why a neighbour that is chosen can't be asked for another node, a sentence each."""
    for preset in presets:
        row = NEIGHBOURS[preset]
        if (there := world.conditions.get(row.condition)) and not own_condition(there):
            yield f"condition {there.type} is another's ({there.reason[:64]}): it is left, and asks for no other node"
        if row.label and row.label.key not in asked_labels(world.labels, asked):
            said = world.labels.get(row.label.key, "")
            if preset in asked and said == row.label.before:
                yield f"label {row.label.key} was taken back by another: {preset} is not asked again for this fault"
            elif said != row.label.before:
                what = f"is another's ({said[:64]}): it is left" if said else "is not there"
                yield f"label {row.label.key} {what}, and asks for no other node"
        if row.refuses and world.labels.get(row.answers) == row.refuses:
            yield f"{preset} can't replace the node ({row.answers}={row.refuses}): a person must see to it"


def answers(presets: Iterable[str], labels: Mapping[str, str]) -> str:
    """How far the neighbours that are asked have come, in words; empty where none says so."""
    keys = (NEIGHBOURS[preset].answers for preset in presets)
    return "".join(f" ({key}={labels[key][:64]})" for key in keys if key in labels)
