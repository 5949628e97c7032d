"""Single GPUs fenced where DRA offers them: then the node's others stay in service. Pure.

The hard taint stands on the Node all the same, with an effect that keeps nobody away. It tells that a permit is held
and that fences may stand: it comes before the first and goes after the last, so whoever finds it looks for them. A
fence is made without effect, then given one under the permit. So one that arrives late has none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from agent.model.devices import CLOSED, DELETES, KEEPS_OFF, Device
from agent.model.names import HARD_TAINT
from agent.model.steps import LiftFence, SetFence, Step, Wait
from agent.model.world import Cause, Pod, World
from agent.remediation.case import Case, Treatment
from agent.remediation.repair import running

_RUNS = "the repair that runs: it stays until that has ended"
_TRIES_S = 10  # for so long Kubernetes may take to say what an eviction would hit


def chosen(case: Case, treatment: Treatment) -> bool:
    """Whether the GPUs of this treatment are to be fenced, rather than their node tainted; one way for an incident."""
    return (case.config.fences or bool(case.world.fences)) and not treatment.remedy.row.whole_node


def by_device(case: Case, treatment: Treatment) -> bool:
    """Whether they can be."""
    return chosen(case, treatment) and not _prevented(case, treatment)


def closed(case: Case, treatment: Treatment) -> bool:
    """Whether no new pod comes to the GPUs that are to be treated."""
    return _stand(case, treatment) if by_device(case, treatment) else case.world.closed


def fencing(case: Case, treatment: Treatment) -> tuple[Step, ...]:
    """What is still to be done to the node's fences, under the permit and beside the taint."""
    if not chosen(case, treatment):
        return lifted(case.world)
    if why := _prevented(case, treatment):
        return (Wait(f"the whole node is tainted, and not one GPU fenced: {why}"), *lifted(case.world))
    wanted = _devices(case, treatment)
    return (*_set(case.world, wanted), *_lifted(case.world, wanted))


def rehearsed(case: Case, treatment: Treatment) -> tuple[Step, ...]:
    """Where nothing may be fenced: rules without effect, so that Kubernetes says what an eviction would hit."""
    if case.world.tainted:
        return ()
    there = {fence.device for fence in case.world.fences}
    wanted = _devices(case, treatment) if by_device(case, treatment) else {}
    made = (SetFence(device, gpu) for device, gpu in wanted.items() if device not in there)
    return (*made, *_lifted(case.world, wanted))


def expelling(case: Case, treatment: Treatment, moved: Iterable[tuple[Pod, Cause]]) -> tuple[Step, ...]:
    """At a drain's deadline, where that is chosen: Kubernetes deletes these from the devices that they hold."""
    if case.config.drain.on_deadline != "no_execute" or not by_device(case, treatment):
        return ()
    on = {f: tuple((pod, why) for pod, why in moved if f.gpu in (pod.gpus or ())) for f in case.world.fences}
    return tuple(
        SetFence(f.device, f.gpu, f.uid, pods) for f, pods in on.items() if pods and f.closed and f.effect == KEEPS_OFF
    )


def expelled(world: World) -> bool:
    """Whether Kubernetes deletes pods at our word: it may take its time."""
    return any(fence.effect == DELETES for fence in world.fences)


def expels(world: World, pod: Pod) -> bool:
    """Whether it deletes this one, or will."""
    gpus = {fence.gpu for fence in world.fences if fence.effect == DELETES}
    return not pod.finished and bool(gpus & (pod.gpus or frozenset()))


def lifted(world: World) -> tuple[Step, ...]:
    """All fences go: the cure is proved."""
    return tuple(_lifted(world, {}))


def drivers_taints(world: World) -> tuple[Wait, ...]:
    """Taints of the driver itself, which it never takes off: shown, and left as they are."""
    kept = ((one.device.name, taint) for one in world.devices for taint in one.taints if taint.endswith(CLOSED))
    why = "is its driver's own, and goes when the driver's pod starts anew"
    return tuple(Wait(f"device {name}: the taint {taint} keeps new pods off, {why}") for name, taint in kept)


def _set(world: World, wanted: Mapping[Device, str]) -> Iterator[Step]:
    there = {fence.device: fence for fence in world.fences}
    for device, gpu in wanted.items():
        fence = there.get(device)
        if fence is None:
            yield SetFence(device, gpu)
        elif fence.former and running(world):
            yield Wait(f"the fence of device {device.name} is that of the Node object before this one, as is {_RUNS}")
        elif fence.former:
            yield LiftFence(device, fence.uid)
        elif not fence.closed and (fence.said or fence.tried_s >= _TRIES_S):
            yield SetFence(device, gpu, fence.uid)
        elif not fence.closed:
            yield Wait(f"the fence of device {device.name} takes effect once Kubernetes has said what it would hit")


def _lifted(world: World, wanted: Mapping[Device, str]) -> Iterator[Step]:
    """A GPU on which a repair runs stays fenced."""
    if not running(world):
        yield from (LiftFence(fence.device, fence.uid) for fence in world.fences if fence.device not in wanted)


def _prevented(case: Case, treatment: Treatment) -> str:
    """Why these GPUs can't be fenced; empty if they can."""
    world = case.world
    if world.unfenced and not _stand(case, treatment):
        return world.unfenced
    if not treatment.gpus:
        return "the UUID of a faulty GPU isn't known"
    if lacking := sorted(treatment.reset_set.difference(_devices(case, treatment).values())):
        return f"no device of a pool of the node's name is {', '.join(lacking)}, by its address or UUID"
    return f"{HARD_TAINT} kept pods off it before, and does until its cure is proved" if world.closed else ""


def _stand(case: Case, treatment: Treatment) -> bool:
    """Whether all devices that are to be fenced are."""
    there, wanted = {fence.device for fence in case.world.fences if fence.closed}, _devices(case, treatment)
    return bool(wanted) and there.issuperset(wanted)


def _devices(case: Case, treatment: Treatment) -> dict[Device, str]:
    """Every device of the GPUs that a reset must name, with the GPU. One that is fenced may be gone from its slice."""
    world, cards = case.world, case.verdict.cards
    found = {one.device: one.gpu(cards) for one in world.devices if one.device.pool == world.node}
    found = {**{fence.device: fence.gpu for fence in world.fences}, **found}
    return {device: gpu for device, gpu in sorted(found.items()) if gpu in treatment.reset_set}
