"""Which pods may leave now, which save their work first, and which ones a person must decide on.

Whoever drains has a draining permit, and others wait for it. So the node keeps it only while something goes on:
until the pods that were asked have gone or had their time, and while a budget refuses until the drain's deadline.
Nobody waits for what is left. Only a request that was in vain, and may still arrive, keeps it for five minutes.

A life of the agent that ends soon sees neither the pods' time pass nor those five minutes. So the Node bears since when
nobody is asked any more, by the boot's monotonic clock, which the boot's lives share.
"""

from __future__ import annotations

from dataclasses import replace

from agent.config.settings import Drain
from agent.model.names import PERMIT_VALID_S
from agent.model.remedy import Remedy
from agent.model.steps import AskCheckpoint, Delete, Evict, GivePermit, On, SetFence, Step, TakePermit, Wait
from agent.model.world import PermitKind, Pod, World
from agent.remediation.budget import free_permit, given, lately, spent
from agent.remediation.case import Case, Outcome, Treatment
from agent.remediation.events import cause
from agent.remediation.fence import expelled, expelling, expels
from agent.remediation.records import Begun, Records
from agent.remediation.repair import rebooted

_NEVER = ("DaemonSet", "Node")  # a DaemonSet's pod would come straight back; a mirror pod is a file
_LOST = ("xid-79", "gpu-lost", "gpu-missing")  # nothing on such a GPU can be saved any more
_STAYS = (
    "may hold the bad GPU and would come straight back, as a DaemonSet's or the node's own: "
    "a person must keep it off the node"
)
_MOST_RETURNS = 3
_LEAVES_S = 660  # how long a pod that was asked may take: the longest grace that counts, and a minute
_PENDING = Wait("the draining permit stays for five minutes: the API server may still carry out a request that failed")
_BEHIND = Wait("the drain is past its deadline: others that wait for a draining permit go first", On.PERMIT)


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
    # Whoever undid our cordon moves no pod of Slurm by it.
    world, config = replace(case.world, cordoned=case.world.cordoned or records.cordoned), case.config
    if world.pods is None:
        return records, (Wait("the node's pods were not read yet"),)
    held = world.held(PermitKind.DRAINING)
    there = leaving(world.pods, treatment)
    stay = tuple(Wait(f"pod {pod.key} {_STAYS}", On.POD) for pod in staying(world.pods, treatment))
    if not there:
        return records, (*stay, *ceased(case, records))
    if not case.local.gathered:
        why = "the node's faults are gathered before the first eviction, so that a gang restarts once"
        return records, (*stay, Wait(why))
    permit = None if held else free_permit(world, PermitKind.DRAINING, config.budget)
    lasted_s = _lasted_s(case, treatment, records)
    if lasted_s is None and held and held.found:  # as after a reboot: a drain that begins anew takes its permit anew
        return records, (*stay, *ceased(case, records))
    if lasted_s is None and (held or permit is not None):
        begun = Begun(treatment.remedy, int(case.verdict.at), {}, case.verdict.boot_id, float(world.clock_s))
        records, lasted_s = replace(records, drain=begun), 0.0
    # How long ago an earlier life asked is told by the node's clock, which may step: no longer than this drain lasts.
    if lasted_s is not None:
        there = tuple(replace(pod, asked_s=min(pod.asked_s or 0, int(lasted_s))) for pod in there)
    if records.drain and records.drain.returns != world.returns:
        records = replace(records, drain=replace(records.drain, returns=dict(world.returns)))
    if records.drain:
        under = held.index if held else records.drain.permit
        records = replace(records, drain=replace(_with_asked(records.drain, there, world), permit=under))
    over_s = -1.0 if lasted_s is None else lasted_s - config.drain.deadline_s.of(treatment.remedy)
    overdue = over_s >= 0
    begun = records.drain or Begun(treatment.remedy, int(case.verdict.at))
    steps = tuple(step for pod in there for step in _steps(pod, treatment, world, config.drain, begun, overdue))
    asks = _in_turn([step for step in steps if isinstance(step, Evict | Delete | AskCheckpoint)], world)
    # What is left waits for a person or for a budget, maybe for weeks: that must block no other node's drain. What a
    # budget refused is asked again once nobody else has wanted the permit for a while.
    no = {*world.blocked, *world.denied}
    refused = overdue and all(isinstance(step, Evict) and step.pod.key in no for step in asks)
    waits = (*stay, *(step for step in steps if isinstance(step, Wait)))
    # It ends every pod on the device: so a budget is the last thing that holds any of them.
    last = [step for step in asks if isinstance(step, Evict) and step.pod.key in world.blocked]
    to_expel = overdue and len(last) == len(asks) and not any(wait.on is On.POD for wait in waits)
    deletes = expelling(case, treatment, [(step.pod, step.cause) for step in last]) if to_expel else ()
    if held:
        quiet_s = _quiet_s(case, records)
        goes_on = deletes or expelled(world) or any(pod.terminating and _in_time(pod, quiet_s) for pod in world.pods)
        idle = (refused or not asks) and not goes_on
        # However many checkpoints, refusals and pods that end without end come one after the other.
        had_s = over_s if held.found else held.had_s  # how long an earlier life had it nobody knows
        endless = min(over_s, had_s) >= config.drain.checkpoint_s + _LEAVES_S
        if idle or endless:
            return records, (*waits, *_given_back(world, quiet_s))
        again = TakePermit(PermitKind.DRAINING, held.index, confirms=not held.former)
        return records, (*([again] if held.stale else []), *waits, *asks, *deletes)
    if not asks:
        return records, waits
    if permit is None:
        spent_on = Wait(spent(world, PermitKind.DRAINING, config.budget), On.PERMIT)
        return records, waits if refused and not deletes else (*stay, spent_on)
    if overdue and lately(world, PermitKind.DRAINING, permit):
        return records, waits if refused else (*waits, _BEHIND)
    return _under(records, permit), (TakePermit(PermitKind.DRAINING, permit), *waits, *asks)


def _under(records: Records, permit: int) -> Records:
    return replace(records, drain=replace(records.drain, permit=permit)) if records.drain else records


def _in_turn(asks: list[Evict | Delete | AskCheckpoint], world: World) -> list[Evict | Delete | AskCheckpoint]:
    """First the pods that nobody refused; of those, first the namespaces in which nobody denied anything, for a webhook
    that hangs costs ten seconds a request; and there first the pods that are to save. Then the refused ones, first the
    one that was asked longest ago."""
    last = {key: number for number, key in enumerate(world.refused, 1)}
    denying = {key.partition("/")[0] for key in world.denied}

    def turn(ask: Evict | Delete | AskCheckpoint) -> tuple[int, bool, bool]:
        return last.get(ask.pod.key, 0), ask.pod.namespace in denying, not isinstance(ask, AskCheckpoint)

    return sorted(asks, key=turn)


def _with_asked(drain: Begun, pods: tuple[Pod, ...], world: World) -> Begun:
    """With the pods that this life has asked to save: so the next life knows since when, whatever the pods say."""
    new = {
        pod.uid: world.clock_s - (pod.asked_s or 0)
        for pod in pods
        if pod.asked_for == drain.at and pod.uid not in drain.asked
    }
    if not new:
        return drain
    there = {pod.uid for pod in pods}
    return replace(drain, asked={uid: at for uid, at in {**drain.asked, **new}.items() if uid in there})


def ceased(case: Case, records: Records) -> tuple[Step, ...]:
    """Where nobody is evicted any more: the draining permit goes back once the pods that were asked have gone."""
    world, quiet_s = case.world, _quiet_s(case, records)
    held = world.held(PermitKind.DRAINING)
    pods = (pod for pod in world.pods or () if _in_time(pod, quiet_s))
    going = sorted(pod.key for pod in pods if pod.terminating or expels(world, pod))
    if held and going and held.unchanged_s < _LEAVES_S:
        return (Wait(f"the draining permit goes back once these have gone: {', '.join(going)}"),)
    return _given_back(world, quiet_s)


def _given_back(world: World, quiet_s: int) -> tuple[Step, ...]:
    held = world.held(PermitKind.DRAINING)
    late = world.pending or (held and held.inherited and quiet_s < PERMIT_VALID_S)
    return (_PENDING,) if held and late else given(world, PermitKind.DRAINING)


def quieted(case: Case, records: Records, moves: tuple[Step, ...]) -> Records:
    """With since when nobody is asked to leave while the permit is held. It goes before anybody is asked again."""
    world, drain, held = case.world, records.drain, case.world.held(PermitKind.DRAINING)
    asks = any(isinstance(step, AskCheckpoint | Evict | Delete | SetFence) for step in moves)
    stays = held and not any(isinstance(step, GivePermit) for step in moves)
    if drain is None or not (asks or stays):
        return records
    if rebooted(drain.boot_id, case.verdict):
        drain = replace(drain, boot_id=case.verdict.boot_id, boot_s=0.0, asked={})
    return replace(records, drain=replace(drain, quiet_from=0 if asks else world.clock_s - _quiet_s(case, records)))


def _quiet_s(case: Case, records: Records) -> int:
    """For how many seconds of this boot nobody was asked to leave, in whichever life of the agent."""
    drain, now_s = records.drain, case.world.clock_s
    if drain is None or rebooted(drain.boot_id, case.verdict):
        return 0
    return now_s - drain.quiet_from if 0 < drain.quiet_from <= now_s else 0


def _in_time(pod: Pod, quiet_s: int) -> bool:
    """Whether it may still be ending, had it been asked by the last request that could arrive."""
    return not pod.stuck and quiet_s - PERMIT_VALID_S <= pod.leaves_s


def _lasted_s(case: Case, treatment: Treatment, records: Records) -> float | None:
    """For how long this drain has gone on, by the monotonic clock, which a boot's lives of the agent share. None: it
    has not begun, or not in this boot; then its deadline begins anew, for no other clock is to be trusted."""
    begun, now_s = records.drain, case.world.clock_s
    if begun is None or begun.remedy is not treatment.remedy or rebooted(begun.boot_id, case.verdict):
        return None
    return now_s - begun.boot_s if 0 < begun.boot_s <= now_s else None


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
    of = cause(pod, treatment, world.node)
    if refused and overdue and settings.on_deadline == "delete":
        return (*saving, *_may_not(pod, denied), Delete(pod, outcome, of))
    return (*saving, *_may_not(pod, denied or refused), Evict(pod, outcome, of))


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
    if pod.slurm_busy and world.cordoned and not overdue:
        return "is Slurm's, which has not drained it yet", On.OTHER
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
    answer = f": {pod.checkpoint_said}" if pod.checkpoint_said else ""
    wait = Wait(f"pod {pod.key} has {limit_s:.0f} s to save its checkpoint{answer}")
    return "", (AskCheckpoint(pod, begun.at), wait)
