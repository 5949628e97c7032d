"""What the agent does, and what keeps it from it, as Events: each once in an incident. Pure.

They are on the Node. That a pod was asked to leave is told on the pod and on what controls it, where its people look.

They are the last steps of a plan, so that no act waits for one. What happened in an earlier round is told in the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from agent.model.names import HARD_TAINT
from agent.model.steps import Announce, On, Retaint, Step, Wait
from agent.model.world import About, Cause, World
from agent.remediation.events import event_name, plain
from agent.remediation.records import Attempt, Stage
from agent.remediation.situation import Now, Situation, recurs

_MOST_PODS = 8  # of one incident, each with an Event of its own: a storm writes a handful
_MOST_CONTROLLERS = 16  # of the pods that one withdrawal moves: one who has but one of them must find it


def acts(now: Now, steps: Iterable[Step]) -> tuple[Announce, ...]:
    """Those that were not sent yet."""
    world = now.case.world
    found = (
        *_moved(world),
        *_withdrawal(now, steps),
        *_drain(now, steps),
        *_repairs(now),
        *_recurs(now, steps),
        *_ends(now, steps),
    )
    return tuple(one for one in found if one.name not in world.announced)


def _moved(world: World) -> Iterator[Announce]:
    """Each pod's own, and one on each controller: several ReplicaSets may be one Deployment's."""
    pods = {_name(world, pod.uid, cause): (pod.itself, cause) for pod, cause in world.moved}
    controllers: dict[str, tuple[About, Cause]] = {}
    for pod, cause in world.moved:
        if about := pod.controller:
            whose = pod.workload if about.kind == "ReplicaSet" else about.uid
            controllers.setdefault(_name(world, whose, cause), (about, cause))
    few = (*islice(pods.items(), _MOST_PODS), *islice(controllers.items(), _MOST_CONTROLLERS))
    for name, (about, cause) in few:
        yield Announce(name, True, "MovedForGpuFault", cause.why, about=about)


def _name(world: World, whose: str, cause: Cause) -> str:
    return event_name(world, f"moved {whose} {cause.incident}")


def _withdrawal(now: Now, steps: Iterable[Step]) -> Iterator[Announce]:
    world, treatment = now.case.world, now.treatment
    if treatment and now.situation in (Situation.WITHDRAWN, Situation.BY_HAND):
        ids = ", ".join(fault.finding.id for fault in treatment.faults)
        new = "new pods stay away" if world.closed else "new pods come to its other GPUs only"
        yield _event(world, f"withdrawn {_incident(now)}", "Withdrawn", f"{new}: {treatment.remedy} for {ids}")
    if now.situation is Situation.TO_WITHDRAW:
        for why in _waits(steps, On.PERMIT):
            yield _event(world, f"spent {_incident(now)}", "BudgetSpent", f"not withdrawn: {why}")


def _drain(now: Now, steps: Iterable[Step]) -> Iterator[Announce]:
    world, incident = now.case.world, _incident(now)
    if now.situation is not Situation.WITHDRAWN:
        return
    for pod, why in islice({**world.blocked, **world.denied}.items(), _MOST_PODS):
        yield _event(world, f"refused {pod} {incident}", "EvictionRefused", f"pod {pod} may not be evicted yet: {why}")
    for why in islice(_waits(steps, On.POD), _MOST_PODS):
        yield _event(world, f"{why} {incident}", "PodNeedsPerson", why)


def _repairs(now: Now) -> Iterator[Announce]:
    world = now.case.world
    for one in now.records.attempts:
        if isinstance(one, Attempt) and one.stage is not Stage.RESERVED:
            yield _event(world, f"begun {one.job}", "RepairBegun", one.what, warning=False)
        if isinstance(one, Attempt) and one.stage is Stage.FAILED:
            yield _event(world, f"failed {one.job}", "RepairFailed", f"{one.what}: {one.said or 'it failed'}")


def _recurs(now: Now, steps: Iterable[Step]) -> Iterator[Announce]:
    world = now.case.world
    held = (step for step in steps if isinstance(step, Wait) and step.on is On.PROBATION)
    for one in (*held, *recurs(now)):
        reason = "OnProbation" if one.on is On.PROBATION else "Recurred"
        yield _event(world, f"recurs {one.why}", reason, one.why)


def _ends(now: Now, steps: Iterable[Step]) -> Iterator[Announce]:
    world, verdict = now.case.world, now.case.verdict
    for fault in verdict.fatal if world.tainted else ():
        if fault.proved:
            key = f"proved {fault.finding.id} {fault.since:.3f}"
            yield _event(
                world, key, "CureProved", f"{fault.finding.id}: it only stays well for a while first", warning=False
            )
    for one in verdict.dismissed:
        yield _event(world, f"dismissed {one}", "Dismissed", f"a person dismissed {one}", warning=False)
    if world.tainted and any(isinstance(step, Retaint) and not _hard(step) for step in steps):
        yield _event(world, f"returned {world.stored}", "Returned", "new pods may come again", warning=False)


def _hard(step: Retaint) -> bool:
    return any(taint.key == HARD_TAINT for taint in step.taints)


def _waits(steps: Iterable[Step], on: On) -> Iterator[str]:
    return (step.why for step in steps if isinstance(step, Wait) and step.on is on)


def _incident(now: Now) -> str:
    return now.treatment.incident if now.treatment else ""


def _event(world: World, key: str, reason: str, message: str, warning: bool = True) -> Announce:
    return Announce(event_name(world, key), warning, reason, plain(message))
