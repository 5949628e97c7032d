"""Which pods may leave now, which save their work first, and which ones a person must decide on."""

from __future__ import annotations

from dataclasses import replace

from agent.config.settings import Config, Drain
from agent.model.fault import Remedy, Sets, Verdict
from agent.model.steps import AskCheckpoint, Delete, Evict, On, Step, TakeSlot, Wait
from agent.model.world import Pod, SlotKind, World
from agent.remediation.budget import free_slot, given, spent
from agent.remediation.records import Attempt, Begun, Records

_WHOLE_NODE = (Remedy.REBOOT_NODE, Remedy.REPLACE_NODE)
_NEVER = ("DaemonSet", "Node")  # a DaemonSet's pod would come straight back; a mirror pod is a file
_LOST = ("xid-79", "gpu-lost", "gpu-missing")  # nothing on such a GPU can be saved any more
_MOST_RETURNS = 3
_OTHERS_FIRST_S = 300  # whoever waits for a permit looks each half a minute or so


def bad_gpus(verdict: Verdict, lost: bool = False) -> frozenset[str]:
    """UUIDs of the GPUs that are to be mended, or of the ``lost`` ones; empty if one of them isn't known."""
    faults = [f for f in verdict.mended if not lost or f.finding.rule in _LOST]
    known = frozenset(fault.uuid for fault in faults if fault.uuid)
    return known if all(fault.uuid for fault in faults) else frozenset()


def reset_set(verdict: Verdict) -> frozenset[str]:
    """UUIDs of the GPUs that a reset must name: the bad ones, and those that can only be reset together with them."""
    bad = bad_gpus(verdict)
    return bad.union(*(verdict.linked.get(uuid, frozenset()) for uuid in bad))


def leaving(pods: tuple[Pod, ...], verdict: Verdict) -> tuple[Pod, ...]:
    """The pods that must be gone before the remedy: all for the node's, those on the bad GPU for a GPU's.

    A reset ends the work on every GPU that it names. Where it isn't known which pod holds which GPU, every pod that
    requests one; lowest priority first.
    """
    bad = reset_set(verdict) if verdict.remedy is Remedy.RESET_GPU else bad_gpus(verdict)
    whole = verdict.remedy in _WHOLE_NODE
    found = [
        pod
        for pod in pods
        if not pod.finished
        and not pod.static
        and pod.owner not in _NEVER
        and not pod.ours
        and (whole or (pod.gpu and (pod.gpus is None or not bad or bool(pod.gpus & bad))))
    ]
    return tuple(sorted(found, key=lambda pod: (pod.priority, pod.key)))


def drain(
    verdict: Verdict, world: World, config: Config, records: Records, gathered: bool
) -> tuple[Records, tuple[Step, ...]]:
    """The records with the drain's beginning, and what to do about each pod that must leave."""
    if world.pods is None:
        return records, (Wait("the node's pods were not read yet"),)
    held = world.held(SlotKind.DRAINING)
    back = given(world, SlotKind.DRAINING)
    there = leaving(world.pods, verdict)
    if not there:
        return records, back
    if not gathered:
        why = "the node's faults are gathered before the first eviction, so that a gang restarts once"
        return records, (Wait(why),)
    slot = None if held else free_slot(world, SlotKind.DRAINING, config.budget)
    if (held or slot is not None) and (records.drain is None or records.drain.remedy is not verdict.remedy):
        records = replace(records, drain=Begun(verdict.remedy, int(verdict.at)))
    if records.drain and records.drain.returns != world.returns:
        records = replace(records, drain=replace(records.drain, returns=dict(world.returns)))
    overdue = _overdue(verdict, world, config.drain, records)
    steps = tuple(step for pod in there for step in _steps(pod, verdict, world, config.drain, overdue))
    asks = [step for step in steps if isinstance(step, Evict | Delete | AskCheckpoint)]
    # What is left waits for a person or for a budget, maybe for weeks: that must block no other node's drain. What a
    # budget refused is asked again once nobody else has wanted the permit for a while.
    no = {*world.blocked, *world.denied}
    refused = overdue and all(isinstance(step, Evict) and step.pod.key in no for step in asks)
    waits = tuple(step for step in steps if isinstance(step, Wait))
    if held:
        idle = (refused or not asks) and not any(pod.terminating for pod in there)
        return records, (*waits, *back) if idle else steps
    if not asks or (refused and _wanted(world, slot)):
        return records, waits
    if slot is None:
        return records, (Wait(spent(world, SlotKind.DRAINING, config.budget), On.PERMIT),)
    return records, (TakeSlot(SlotKind.DRAINING, slot), *steps)


def _overdue(verdict: Verdict, world: World, settings: Drain, records: Records) -> bool:
    """Whether this drain's deadline is over: by the wall clock, which outlives the agent, but never before so much
    time has passed since the withdrawal by the monotonic one."""
    begun, held = records.drain, world.held(SlotKind.WITHDRAWN)
    if begun is None or begun.remedy is not verdict.remedy or held is None:
        return False
    return min(verdict.at - begun.at, held.taken_s) >= settings.deadline_s.of(verdict.remedy)


def _wanted(world: World, index: int | None) -> bool:
    """Whether others may still want this permit: it is held, or was so a moment ago."""
    known = {slot.index: slot for slot in world.slots or () if slot.kind is SlotKind.DRAINING}
    return index is None or (index in known and known[index].unchanged_s < _OTHERS_FIRST_S)


def _steps(pod: Pod, verdict: Verdict, world: World, settings: Drain, overdue: bool) -> tuple[Step, ...]:
    """The step of a pod that may leave now or save its work, with a Wait for what keeps it."""
    why, on = _keeps(pod, verdict, world, settings, overdue)
    if why:
        return (Wait(f"pod {pod.key} {why}", on),)
    outcome, saving = _checkpoint(pod, verdict, settings)
    if pod.checkpoint_said and not pod.checkpoint:
        saving = (Wait(f"pod {pod.key} is asked for no checkpoint: {pod.checkpoint_said}"),)
    if not outcome:
        return saving
    refused, denied = world.blocked.get(pod.key), world.denied.get(pod.key)
    if refused and overdue and settings.on_deadline == "delete":
        return (*saving, *_may_not(pod, denied), Delete(pod, outcome))
    return (*saving, *_may_not(pod, denied or refused), Evict(pod, outcome))


def _may_not(pod: Pod, why: str | None) -> tuple[Wait, ...]:
    return (Wait(f"pod {pod.key} may not be evicted yet: {why}", On.EVICTION),) if why else ()


def _keeps(pod: Pod, verdict: Verdict, world: World, settings: Drain, overdue: bool) -> tuple[str, On]:
    """Why this pod stays for now, in words that don't change while it does, and whether only a person can move it."""
    if pod.terminating:
        if pod.stuck:
            return "should have ended and did not: see the node's kubelet", On.POD
        return "is terminating", On.OTHER
    if pod.protected and not overdue:
        deadline_s = settings.deadline_s.of(verdict.remedy)
        return f"asks by annotation to be left alone; it is, for {deadline_s:.0f} s", On.OTHER
    if settings.unmanaged == "wait" and not pod.owner:
        return "has no controller to start it again: a person must move it", On.POD
    if settings.unmanaged == "wait" and pod.pinned:
        return "keeps its data on this node's own disk: a person must move it", On.POD
    whole = verdict.remedy in _WHOLE_NODE
    holds = pod.gpus is not None and bool(bad_gpus(verdict))
    if not whole and not holds:
        if pod.namespace in settings.exclude_namespaces:
            return "is in an excluded namespace: a person must move it", On.POD
        if pod.tolerates:
            return "tolerates our taint, and may not hold the bad GPU: a person must move it", On.POD
    if world.returns.get(pod.workload, 0) >= _MOST_RETURNS:
        return f"came back {_MOST_RETURNS} times although the node is tainted: a person must stop it", On.POD
    return "", On.OTHER


def _checkpoint(pod: Pod, verdict: Verdict, settings: Drain) -> tuple[str, tuple[Step, ...]]:
    """How its checkpoint ended, empty while it is awaited with the steps for that."""
    if not pod.checkpoint:
        return "none", ()
    if pod.checkpoint == "sigterm":
        return "unconfirmed", ()
    if pod.saved:
        return "saved", ()
    limit_s = min(pod.checkpoint_timeout_s, settings.checkpoint_s)
    gone = bad_gpus(verdict, lost=True)
    lost = any(f.finding.rule in _LOST for f in verdict.fatal)
    if lost and (pod.gpus is None or not gone or pod.gpus & gone):
        limit_s = 0.0
    if (pod.asked_s is not None and pod.asked_s >= limit_s) or limit_s == 0:
        return "expired", ()
    said = f": {pod.checkpoint_said}" if pod.checkpoint_said else ""
    wait = Wait(f"pod {pod.key} has {limit_s:.0f} s to save its checkpoint{said}")
    return "", (AskCheckpoint(pod), wait)


def in_force(together: Sets, live: Attempt | None, template: str | None) -> Sets:
    """A reset that is reserved keeps its GPUs; where none is configured no healthy GPU's pods make way for it."""
    if live and live.remedy is Remedy.RESET_GPU:
        return {**together, **dict.fromkeys(live.uuids, frozenset(live.along))}
    return together if template else {}
