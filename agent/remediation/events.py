"""What is told about a fault as an Event, and text as an API object may bear it. Pure."""

from __future__ import annotations

import re
from hashlib import sha256

from agent.model.fault import Fault, Identity, Severity, Verdict, identity
from agent.model.steps import Announce
from agent.model.text import printable
from agent.model.world import Cause, Pod, World
from agent.remediation.case import Treatment

_MESSAGE_CHARS = 512


def announcements(verdict: Verdict, world: World) -> tuple[Announce, ...]:
    """One Event an incident: whichever of its symptoms came first has told it already."""
    return tuple(
        _announcement(fault, identity(fault, verdict.cards), world)
        for fault in verdict.faults
        if not any(_name(part, world) in world.announced for part in (fault, *fault.joined))
    )


def _announcement(fault: Fault, card: Identity, world: World) -> Announce:
    """The one Event of a fault; the same fault after a restart has the same name and is not told twice."""
    finding = fault.finding
    return Announce(
        name=_name(fault, world),
        warning=finding.severity > Severity.NOTICE,
        reason=camel(finding.rule),
        message=plain(
            f"{finding.id} ({finding.severity.name.lower()}, remedy {finding.remedy}): {finding.message}"
            + (f" ({card.words})" if card else "")
        ),
        pod=finding.pod,
    )


def _name(fault: Fault, world: World) -> str:
    return event_name(world, f"{fault.finding.id} {fault.since:.3f}")


def event_name(world: World, what: str) -> str:
    """Of the one Event that tells this of the Node."""
    return f"{world.node}.{sha256(f'{world.uid} {what}'.encode()).hexdigest()[:16]}"


def cause(pod: Pod, treatment: Treatment, node: str) -> Cause:
    """Why the pod is asked to leave, for people who may not read Nodes: by the fault of its own GPU, if it has one."""
    own = [fault for fault in treatment.faults if fault.uuid in (pod.gpus or ())]
    fault = (own or treatment.faults)[0]
    finding, gpu = fault.finding, f" on {fault.uuid}" if fault.uuid else ""
    says = f"{finding.id}{gpu}, remedy {treatment.remedy}: {finding.message}"
    more = f"(more: kubectl describe node {node})"
    return Cause(treatment.incident, plain(f"pod {pod.name} was asked to leave node {node} {more}: {says}"))


def camel(rule: str) -> str:
    """``row-remap-failure`` as a condition's reason: ``RowRemapFailure``."""
    return "".join(part.capitalize() for part in re.split(r"[^A-Za-z0-9]+", rule))


def plain(text: str) -> str:
    """Text for an API object: printable, one line, bounded. Kernel lines are hostile input."""
    return printable(text)[:_MESSAGE_CHARS]
