"""Degraded GPUs that only a reset would cure: which are reset now, because nobody uses them. Pure.

Nobody leaves for a degraded fault. So the taint comes first and then a second look; whoever came in between goes first,
the taint goes, and the next try waits twice as long. An incident gets one reset; what it did not cure is a person's.
One whose Job never began was none, and is tried again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from agent.config.settings import Config, Mode
from agent.model.fault import Fault, Severity, Verdict
from agent.model.remedy import Remedy
from agent.model.steps import On, Wait
from agent.model.world import Local, World
from agent.remediation.case import Case, Treatment, treated
from agent.remediation.ladder import done_already
from agent.remediation.other_controllers import another
from agent.remediation.records import Attempt, Idle, Records, Stage
from agent.remediation.repair import awaited, rebooted
from agent.remediation.taints import LAST_PERMIT, spare

_LATELY_S = 86400  # withdrawals further back lengthen no pause
_MOST_DOUBLED = 16  # times the pause: it ends after a day at the latest


def resettable(faults: Iterable[Fault]) -> tuple[Fault, ...]:
    """The degraded ones that a reset of their GPU would end; a drill resets nothing that nobody else would."""
    return tuple(
        fault
        for fault in faults
        if fault.finding.severity is Severity.DEGRADED
        and fault.finding.remedy is Remedy.RESET_GPU
        and fault.uuid
        and not fault.finding.drill
    )


def wanted(verdict: Verdict, config: Config, failed_resets: Mapping[str, Attempt]) -> tuple[Fault, ...]:
    """Those that are to be reset by themselves. A fatal fault goes first, and its own way."""
    asked = config.repair.reset_when_idle and config.repair.reset_gpu and config.mode is Mode.EVICT
    if not asked or verdict.fatal:
        return ()
    there = resettable(verdict.faults)
    return tuple(one for one in there if not (one.proved or one.pre_start or one.aside or failed(one, failed_resets)))


def failed(fault: Fault, failed_resets: Mapping[str, Attempt]) -> str:
    """How the one reset of this incident failed; empty if there was none."""
    attempt = _spent(fault, failed_resets)
    if attempt is None or attempt.unbegun:
        return ""
    return f"{attempt.said or 'the fault stands after it'} (Job {attempt.job})"


def chosen(case: Case, records: Records) -> tuple[Treatment | None, Records, tuple[Wait, ...]]:
    """The treatment, the records, and why the idle GPUs of degraded faults are not reset now."""
    verdict = case.verdict
    idle = _kept(records.idle, verdict)
    last = records.attempts[-1] if idle.withdrawn and records.attempts else None
    if last:
        faults, records, waits = _under_way(case, replace(records, idle=idle), last)
    else:
        faults, idle, waits = _free(case, idle)
        records = replace(records, idle=idle)
    if not verdict.fatal:
        persons = _for_a_person(verdict, case.config, records.idle.failed_resets)
        waits = (*waits, *(Wait(why, On.REPAIR) for why in persons))
    return treated(verdict, faults), records, waits


def _for_a_person(verdict: Verdict, config: Config, failed_resets: Mapping[str, Attempt]) -> Iterator[str]:
    stand = [fault for fault in resettable(verdict.faults) if not fault.proved]
    for fault in stand:
        if why := failed(fault, failed_resets):
            yield f"{fault.finding.id}: the reset of its idle GPU failed: {why}; a person must decide"
        elif config.repair.reset_when_idle and (last := _spent(fault, failed_resets)):
            yield f"{fault.finding.id}: the reset of its idle GPU is tried again: {last.said} (Job {last.job})"
    untried = (fault for fault in stand if not failed(fault, failed_resets))
    if config.repair.reset_when_idle and (why := done_already(untried)):
        yield why


def _under_way(case: Case, records: Records, last: Attempt) -> tuple[tuple[Fault, ...], Records, tuple[Wait, ...]]:
    """An attempt is written down: it goes on as a fatal fault's would, unless somebody came before its Job was made."""
    verdict, world, config = case.verdict, case.world, case.config
    begun = last.acted_at > 0 or any(job.name == last.job for job in world.jobs or ())
    its = tuple(fault for fault in resettable(verdict.faults) if fault.uuid in last.uuids)
    why = "" if begun or verdict.fatal else in_use(frozenset(last.gpus), world, case.local, reserved=True)
    why = why or ("" if begun else _too_long(verdict, config, records.idle))
    on = config.mode is Mode.EVICT and not verdict.fatal and last.stage is not Stage.FAILED and not why
    if its and on and (begun or config.repair.reset_when_idle):
        return its, records, ()
    waits = tuple(_not_now(fault, why) for fault in its if why)
    if not begun and awaited(case):  # the node waits for it as it is: the same attempt, begun again, finds its Job
        return (), records, waits
    left = resettable(verdict.standing) if begun else ()
    spoiled = {fault.finding.id: last for fault in left if fault.uuid in last.uuids and not fault.proved}
    idle = replace(_left(records.idle, verdict), failed_resets={**records.idle.failed_resets, **spoiled})
    records = records if begun else records.unbegun()
    return (), replace(records, idle=idle), waits


def _free(case: Case, idle: Idle) -> tuple[tuple[Fault, ...], Idle, tuple[Wait, ...]]:
    """What may be reset, at the first look and at the one under the taint; what keeps it has words."""
    verdict, world = case.verdict, case.world
    there = wanted(verdict, case.config, idle.failed_resets)
    if there and verdict.blind:
        return (), idle, ()
    free, waits = [], []
    for fault in there if idle.withdrawn or not world.tainted else ():  # another taint of ours goes first
        why = in_use(Treatment((fault,), Remedy.RESET_GPU, verdict.linked).reset_set, world, case.local)
        why = why or _not_yet(case, idle, fault, begins=not world.tainted)
        if why:
            waits.append(_not_now(fault, why))
        else:
            free.append(fault)
    if free and not world.tainted:
        idle = replace(idle, times=(*idle.times, int(verdict.at)))
    stays = idle.withdrawn and awaited(case)
    if idle.withdrawn and not (free or stays):
        idle = _left(idle, verdict)
    return tuple(free), replace(idle, withdrawn=bool(free) or stays), tuple(waits)


def in_use(gpus: frozenset[str], world: World, local: Local, reserved: bool = False) -> str:
    """Who may use one of these GPUs, in words that don't change while they do; empty if nobody.

    ``reserved``: our own NVML is closed for the reset, and tells of no process any more.
    """
    if any(local.clients.get(gpu) for gpu in gpus):
        return "a process is on it"
    if not reserved and not gpus <= local.clients.keys():
        return "NVML did not read lately which processes are on it"
    if local.holders is None:
        return "PodResources can't be asked which pod holds it"
    if world.pods is None:
        return "the node's pods were not read yet"
    over = {pod.key for pod in world.pods if pod.finished or pod.ours}  # the kubelet may list them for a while
    occupying = {key for key, held in local.holders.items() if held is None or gpus.intersection(held)}
    # A pod that the kubelet has yet to give its GPU may get any.
    untold = (pod for pod in world.pods if pod.gpu and not local.holders.get(pod.key))
    occupying |= {pod.key for pod in untold if pod.gpus is None or pod.gpus & gpus}
    return f"pod {', '.join(sorted(occupying - over))} holds it" if occupying - over else ""


def _not_yet(case: Case, idle: Idle, fault: Fault, begins: bool) -> str:
    """Why the node is not withdrawn for it, although the GPU is idle."""
    verdict, world, config = case.verdict, case.world, case.config
    if not spare(world, config.budget):
        return f"paused: {world.paused}" if world.paused else LAST_PERMIT
    if not begins:
        return _too_long(verdict, config, idle)
    if why := another(world):
        return why
    if case.local.up_s < config.repair.prove_s and any(rebooted(fault.boot_id, verdict) for fault in verdict.faults):
        return "the node was rebooted since its fault was seen: it must show whether that cured it"
    unbegun = _spent(fault, idle.failed_resets)
    often = max(len(idle.times), unbegun.number if unbegun else 0)
    pause_s = config.repair.pause_s * 2 ** min(often - 1, _MOST_DOUBLED) if idle.times else 0.0
    if idle.times and abs(verdict.at - idle.times[-1]) < pause_s:
        return f"the node was withdrawn for it {often} times lately, and is not for {pause_s:.0f} s"
    return ""


def _too_long(verdict: Verdict, config: Config, idle: Idle) -> str:
    """Whatever keeps the Job from being made, a template or an operand: the node isn't kept from its pods for it."""
    limit_s = config.repair.prove_s
    over = bool(idle.times) and abs(verdict.at - idle.times[-1]) > limit_s
    return f"no reset could begin within {limit_s:.0f} s" if over else ""


def _left(idle: Idle, verdict: Verdict) -> Idle:
    """The withdrawal is over: the pause before the next one begins."""
    return replace(idle, withdrawn=False, times=(*idle.times[:-1], int(verdict.at)))


def _kept(idle: Idle, verdict: Verdict) -> Idle:
    """Without what is over, faults that have ended and withdrawals of days ago; what joins an incident is of it."""
    spent = ((fault, _spent(fault, idle.failed_resets)) for fault in verdict.faults)
    failed_resets = {key: one for fault, one in spent if one for key in fault.ids}
    times = tuple(at for at in idle.times if abs(verdict.at - at) <= _LATELY_S)
    return replace(idle, failed_resets=failed_resets, times=times)


def _spent(fault: Fault, failed_resets: Mapping[str, Attempt]) -> Attempt | None:
    return next((failed_resets[key] for key in fault.ids if key in failed_resets), None)


def _not_now(fault: Fault, why: str) -> Wait:
    return Wait(f"{fault.finding.id}: its GPU is not reset yet: {why}")
