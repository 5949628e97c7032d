"""Which pods may leave now, which save their work first, and which ones a person must decide on."""

from __future__ import annotations

from dataclasses import replace

from agent.config.settings import Drain
from agent.model.remedy import Remedy
from agent.model.steps import AskCheckpoint, Delete, Evict, On, Step, TakePermit, Wait
from agent.model.world import PermitKind, Pod, World
from agent.remediation.budget import free_permit, given, spent
from agent.remediation.case import Case, Outcome, Treatment
from agent.remediation.records import Begun, Records

_NEVER = ("DaemonSet", "Node")  # a DaemonSet's pod would come straight back; a mirror pod is a file
_LOST = ("xid-79", "gpu-lost", "gpu-missing")  # nothing on such a GPU can be saved any more
_STAYS = (
    "may hold the bad GPU and would come straight back, as a DaemonSet's or the node's own: a person must keep it off"
)
_MOST_RETURNS = 3
_OTHERS_FIRST_S = 300  # whoever waits for a permit looks each half a minute or so


def leaving(pods: tuple[Pod, ...], treatment: Treatment) -> tuple[Pod, ...]:
    """The pods that must be gone before the remedy: all for the node's, those on the bad GPU for a GPU's.

    A reset ends the work on every GPU that it names. Where it isn't known which pod holds which GPU, every pod that
    requests one; lowest priority first.
    """
    whole = treatment.remedy.row.whole_node
    found = [pod for pod in pods if not pod.finished and not pod.ours and not _comes_back(pod)]
    there = [pod for pod in found if whole or _holds(pod, treatment)]
    return tuple(sorted(there, key=lambda pod: (pod.priority, pod.key)))


def staying(pods: tuple[Pod, ...], treatment: Treatment) -> tuple[Pod, ...]:
    """Those on the bad GPU that no eviction moves. gpu-operator's own leave by the Node's labels."""
    if treatment.remedy.row.whole_node:
        return ()
    found = (pod for pod in pods if not (pod.finished or pod.ours or pod.operand) and _comes_back(pod))
    return tuple(pod for pod in found if _holds(pod, treatment))


def drained(world: World, treatment: Treatment) -> bool:
    return world.pods is not None and not (leaving(world.pods, treatment) or staying(world.pods, treatment))


def _comes_back(pod: Pod) -> bool:
    return pod.static or pod.owner in _NEVER


def _holds(pod: Pod, treatment: Treatment) -> bool:
    """Whether it may hold a GPU that is in question."""
    bad = treatment.reset_set if treatment.remedy is Remedy.RESET_GPU else treatment.gpus
    return pod.gpu and (pod.gpus is None or not bad or bool(pod.gpus & bad))


def drain(case: Case, treatment: Treatment, records: Records) -> Outcome:
    """The records with the drain's beginning, and what to do about each pod that must leave."""
    world, config = case.world, case.config
    if world.pods is None:
        return records, (Wait("the node's pods were not read yet"),)
    held = world.held(PermitKind.DRAINING)
    back = given(world, PermitKind.DRAINING)
    there = leaving(world.pods, treatment)
    stay = tuple(Wait(f"pod {pod.key} {_STAYS}", On.POD) for pod in staying(world.pods, treatment))
    if not there:
        return records, (*stay, *back)
    if not case.local.gathered:
        why = "the node's faults are gathered before the first eviction, so that a gang restarts once"
        return records, (*stay, Wait(why))
    permit = None if held else free_permit(world, PermitKind.DRAINING, config.budget)
    if (held or permit is not None) and (records.drain is None or records.drain.remedy is not treatment.remedy):
        records = replace(records, drain=Begun(treatment.remedy, int(case.verdict.at)))
    if records.drain and records.drain.returns != world.returns:
        records = replace(records, drain=replace(records.drain, returns=dict(world.returns)))
    if records.drain:
        records = replace(records, drain=_with_asked(records.drain, there, world))
    overdue = _overdue(treatment, world, config.drain, records, case.verdict.at)
    begun = records.drain or Begun(treatment.remedy, int(case.verdict.at))
    steps = tuple(step for pod in there for step in _steps(pod, treatment, world, config.drain, begun, overdue))
    asks = _in_turn([step for step in steps if isinstance(step, Evict | Delete | AskCheckpoint)], world)
    # What is left waits for a person or for a budget, maybe for weeks: that must block no other node's drain. What a
    # budget refused is asked again once nobody else has wanted the permit for a while.
    no = {*world.blocked, *world.denied}
    refused = overdue and all(isinstance(step, Evict) and step.pod.key in no for step in asks)
    waits = (*stay, *(step for step in steps if isinstance(step, Wait)))
    if held:
        idle = (refused or not asks) and not any(pod.terminating for pod in there)
        return records, (*waits, *(back if idle else asks))
    if not asks or (refused and _wanted(world, permit)):
        return records, waits
    if permit is None:
        return records, (*stay, Wait(spent(world, PermitKind.DRAINING, config.budget), On.PERMIT))
    return records, (TakePermit(PermitKind.DRAINING, permit), *waits, *asks)


def _in_turn(asks: list[Evict | Delete | AskCheckpoint], world: World) -> list[Evict | Delete | AskCheckpoint]:
    """Those first whom nobody refused, and of those the ones in whose namespace nobody denied anything: a webhook that
    hangs holds each request for ten seconds. Of the others the one that was asked longest ago. Who may save begins."""
    last = {key: number for number, key in enumerate(world.refused, 1)}
    denying = {key.partition("/")[0] for key in world.denied}

    def turn(ask: Evict | Delete | AskCheckpoint) -> tuple[int, bool, bool]:
        return last.get(ask.pod.key, 0), ask.pod.namespace in denying, not isinstance(ask, AskCheckpoint)

    return sorted(asks, key=turn)


def _with_asked(drain: Begun, pods: tuple[Pod, ...], world: World) -> Begun:
    """With whom this life has asked to save by now: the next life knows since when, whatever the pods say."""
    new = {
        pod.uid: world.clock_s - (pod.asked_s or 0)
        for pod in pods
        if pod.asked_for == drain.at and pod.uid not in drain.asked
    }
    if not new:
        return drain
    there = {pod.uid for pod in pods}
    return replace(drain, asked={uid: at for uid, at in {**drain.asked, **new}.items() if uid in there})


def _overdue(treatment: Treatment, world: World, settings: Drain, records: Records, at: float) -> bool:
    """Whether this drain's deadline is over: by the wall clock, which outlives the agent, but never before so much
    time has passed since the withdrawal by the monotonic one."""
    begun, held = records.drain, world.held(PermitKind.WITHDRAWN)
    if begun is None or begun.remedy is not treatment.remedy or held is None:
        return False
    return min(at - begun.at, held.taken_s) >= settings.deadline_s.of(treatment.remedy)


def _wanted(world: World, index: int | None) -> bool:
    """Whether others may still want this permit: it is held, or was so a moment ago."""
    known = {permit.index: permit for permit in world.permits or () if permit.kind is PermitKind.DRAINING}
    return index is None or (index in known and known[index].unchanged_s < _OTHERS_FIRST_S)


def _steps(
    pod: Pod, treatment: Treatment, world: World, settings: Drain, begun: Begun, overdue: bool
) -> tuple[Step, ...]:
    """The step of a pod that may leave now or save its work, with a Wait for what keeps it."""
    why, on = _keeps(pod, treatment, world, settings, overdue)
    if why:
        return (Wait(f"pod {pod.key} {why}", on),)
    outcome, saving = _checkpoint(pod, treatment, world, settings, begun)
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


def _keeps(pod: Pod, treatment: Treatment, world: World, settings: Drain, overdue: bool) -> tuple[str, On]:
    """Why this pod stays for now, in words that don't change while it does, and whether only a person can move it."""
    if pod.unread:
        return f"can't be read ({pod.unread}): a person must look at it", On.POD
    if pod.terminating:
        if pod.stuck:
            return "should have ended and did not: see the node's kubelet", On.POD
        return "is terminating", On.OTHER
    if pod.protected and not overdue:
        deadline_s = settings.deadline_s.of(treatment.remedy)
        return f"asks by annotation to be left alone; it is, for {deadline_s:.0f} s", On.OTHER
    if settings.unmanaged == "wait" and not pod.owner:
        return "has no controller to start it again: a person must move it", On.POD
    if settings.unmanaged == "wait" and pod.pinned:
        return "keeps its data on this node's own disk: a person must move it", On.POD
    whole = treatment.remedy.row.whole_node
    holds = pod.gpus is not None and bool(treatment.gpus)
    if not whole and not holds:
        if pod.namespace in settings.exclude_namespaces:
            return "is in an excluded namespace: a person must move it", On.POD
        if pod.tolerates:
            return "tolerates our taint, and may not hold the bad GPU: a person must move it", On.POD
    if world.returns.get(pod.workload, 0) >= _MOST_RETURNS:
        return f"came back {_MOST_RETURNS} times although the node is tainted: a person must stop it", On.POD
    return "", On.OTHER


def _checkpoint(
    pod: Pod, treatment: Treatment, world: World, settings: Drain, begun: Begun
) -> tuple[str, tuple[Step, ...]]:
    """How its checkpoint ended, empty while it is awaited with the steps for that."""
    if not pod.checkpoint:
        return "none", ()
    if pod.checkpoint == "sigterm":
        return "unconfirmed", ()
    ours = pod.asked_for == begun.at
    if ours and pod.saved:
        return "saved", ()
    limit_s = min(pod.checkpoint_timeout_s, settings.checkpoint_s)
    lost = tuple(fault for fault in treatment.faults if fault.finding.rule in _LOST)
    gone = replace(treatment, faults=lost).gpus
    if lost and (pod.gpus is None or not gone or pod.gpus & gone):
        limit_s = 0.0
    # By our own clock, and after a restart by what was written to the Node: a pod's own words can't lengthen it.
    asked_s = max(pod.asked_s or 0 if ours else 0, world.clock_s - begun.asked.get(pod.uid, world.clock_s))
    if asked_s >= limit_s:
        return "expired", ()
    said = f": {pod.checkpoint_said}" if pod.checkpoint_said else ""
    wait = Wait(f"pod {pod.key} has {limit_s:.0f} s to save its checkpoint{said}")
    return "", (AskCheckpoint(pod, begun.at), wait)
