"""Repair: what must be true before a remedy starts, and whether it helped. Pure.

Reserve, then act: an attempt is written to the Node before its Job is created, and the Job's name is the attempt's
own, so that whoever dies in between finds it again instead of repairing twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from itertools import chain

from agent.config.settings import Repair
from agent.model.describe import describe_clients
from agent.model.fault import Fault, Verdict
from agent.model.ownership import LAST_OPERAND, OPERAND_ON, OPERAND_PAUSED, OPERANDS
from agent.model.remedy import Proof, Remedy
from agent.model.steps import On, StartJob, Wait
from agent.model.world import Job, Pod, World
from agent.remediation.case import Case, Outcome, Treatment
from agent.remediation.collect import collected
from agent.remediation.ladder import aimed, concerns, current, made, own, possible
from agent.remediation.nvidia_smi import EXIT_CODES
from agent.remediation.presets import answers
from agent.remediation.records import COLLECTS, Attempt, Records, Stage

LEAST_PAUSE_S = 1.0  # after a Job that never began, which counts for no limit: it doubles, so that there are few
CURED = "the GPUs were cured by somebody else: they must stay well for a while first"


def yet_to_come(case: Case, treatment: Treatment, records: Records) -> Treatment | None:
    """The treatment of the faults for which a remedy is yet to come; None once nobody makes way for any of them.

    Left out are those whose cure is proved or whose repair has begun, and for a while those that nobody has seen since
    the node was rebooted.
    """
    last = records.attempts[-1] if records.attempts else None
    there = last is not None and any(job.name == last.job for job in case.world.jobs or ())
    begun = last if last and (last.stage in (Stage.STARTED, Stage.DONE) or (there and last.stage.live)) else None
    young = case.local.up_s < case.config.repair.prove_s

    def over(fault: Fault) -> bool:
        unseen = all(rebooted(one.boot_id, case.verdict) for one in (fault, *fault.joined))
        may_be_cured = fault.finding.cure.row.proof is not Proof.NOTHING
        return bool((begun and concerns(begun, fault)) or (young and unseen and may_be_cured))

    left = tuple(fault for fault in treatment.unproved if not over(fault))
    return replace(treatment, faults=left) if left else None


def repair(case: Case, treatment: Treatment, records: Records, drained: bool) -> Outcome:
    """The records as they should be written, and what to do; nothing is done before what it needs is written."""
    world, settings = case.world, case.config.repair
    live = current(treatment, records)
    if live is None:
        return _reserve(case, treatment, records, drained)
    if live.stage is Stage.DONE:
        return _prove(case, treatment, records, live)
    if live.remedy is Remedy.REPLACE_NODE and live.remedy not in settings.templates:
        said = answers(case.config.presets, world.labels)
        return records, (Wait(f"condition GpuReplacementRequested asks for another node{said}"),)
    job = next((job for job in world.jobs or () if job.name == live.job), None)
    if live.stage is Stage.STARTED:
        return _watch(case, records, live, job)
    if job is None and live.remedy not in settings.templates:
        return _ended(case, records, live, f"repair.{live.remedy} names no template any more")
    if job is not None:
        return _started(case, records, live), ()
    if world.jobs is not None and (why := _overtaken(case, treatment, live)):
        left = records if _may_come(case) else _restored(records.unbegun())
        return left, (Wait(f"{live.remedy}, attempt {live.number}, is not begun: {why}"),)
    if world.jobs is None or not drained:
        return records, (Wait(f"{live.remedy} is reserved, and waits until no pod is in its way"),)
    if live.remedy is Remedy.RESET_GPU and not case.local.released:
        return records, (Wait("our own NVML is closed before the reset"),)
    return records, (StartJob(live.job, str(live.remedy), live.gpus),)


def _overtaken(case: Case, treatment: Treatment, live: Attempt) -> str:
    """Why a reserved attempt that has no Job is not to begin any more: somebody else, or a power cut, came first."""
    if rebooted(live.boot_id, case.verdict):
        return "the node was rebooted before its Job was made"
    if all(fault.proved for fault in treatment.faults if concerns(live, fault)):
        return "the GPUs were cured before its Job was made"
    return ""


def awaited(case: Case) -> bool:
    """Whether a Job may still come that an earlier life of the agent may have asked for."""
    return not {*case.local.reserved} <= {job.name for job in case.world.jobs or ()}


def _may_come(case: Case) -> bool:
    """The same of this life's, too: until none may, its reservation stays for the next life to know."""
    return awaited(case) or case.world.pending


def running(world: World) -> str:
    """What of a repair has not ended, and how it goes, in words: until it has, the node stays as it is.

    A Job that was made for a Node object of this name that is gone is known by its pod alone.
    """
    active = (job for job in world.jobs or () if job.state == "active" and not job.name.startswith(COLLECTS))
    jobs = (f"Job {job.name} {job.goes}" for job in active)
    pods = (pod.key for pod in world.pods or () if pod.former and not pod.finished)
    return next(chain(jobs, (f"pod {key}, of a repair that a former Node object began, runs" for key in pods)), "")


def until_over(world: World) -> On:
    """Whether only a person can end what has not: its pod should have ended and did not."""
    jobs = any(job.state == "active" and job.stuck for job in world.jobs or ())
    return On.REPAIR if jobs or any(pod.former and pod.stuck for pod in world.pods or ()) else On.OTHER


def _reserve(case: Case, treatment: Treatment, records: Records, drained: bool) -> Outcome:
    world, settings, local = case.world, case.config.repair, case.local
    remedy, why = aimed(treatment, records, settings)
    if remedy is None:
        if not drained:
            return _restored(records), ()
        if records.attempts or possible(settings, treatment):
            return _restored(records), (Wait(why, On.REPAIR),)
        return _restored(records), (Wait(why if treatment.unproved else CURED),)  # who repairs by hand is not alerted
    records, collects, lasts = collected(case, treatment.outstanding, records)
    if not drained or lasts:
        return records, collects
    if not local.gathered:
        return records, (Wait("the node's faults are gathered before it is repaired"),)
    if world.jobs is None:
        return records, (Wait("the node's Jobs were not read yet"),)
    if name := running(world):  # of an incident whose records are lost
        return records, (Wait(f"{name}: nothing else is begun", until_over(world)),)
    if not treatment.unproved:
        return records, (Wait(CURED),)
    if local.up_s < settings.prove_s and any(rebooted(f.boot_id, case.verdict) for f in case.verdict.faults):
        return records, (Wait("the node was rebooted since its fault was seen: it must show whether that cured it"),)
    due = treatment.outstanding
    tried = own(due, records)
    last = tried[-1] if tried else None
    least_s = LEAST_PAUSE_S if last and last.unbegun else 0.0
    pause_s = max(settings.pause_s, least_s) * 2.0 ** min(len(tried) - 1, 64)  # more is for ever, too
    if last and abs(case.verdict.at - last.ended_at) < pause_s:
        failed = f"{last.remedy}, attempt {last.number}, failed ({last.said})"
        return records, (Wait(f"{failed}: {remedy} follows after a pause of {pause_s:.0f} s", _on(records)),)
    if remedy is Remedy.RESET_GPU:
        records, waits = _clients(case, due, records)
        if waits:
            return records, waits
    else:
        records = _restored(records)
    number = 1 + made(remedy, due, records)
    first = min(due.faults, key=lambda fault: fault.since)
    # By the incident and not by the time: whatever is forgotten, the same attempt finds its Job again.
    incident = f"{world.uid} {first.finding.id} {first.since:.3f} {remedy} {number}"
    attempt = Attempt(
        remedy,
        number,
        f"gpu-health-{remedy.replace('_', '-')}-{sha256(incident.encode()).hexdigest()[:10]}",
        tuple(sorted(due.gpus)),
        case.verdict.boot_id,
        Stage.RESERVED,
        along=tuple(sorted(due.reset_set - due.gpus)) if remedy is Remedy.RESET_GPU else (),
    )
    return replace(records, attempts=(*records.attempts, attempt)), (Wait(f"{remedy} is being reserved"),)


def _clients(case: Case, treatment: Treatment, records: Records) -> Outcome:
    """Whoever holds the GPU leaves before a reset: gpu-operator's own by their labels, the rest is named."""
    world = case.world
    leave = replace(records, paused=True), (Wait("gpu-operator's operands leave the node before the reset"),)
    on = {label for label in OPERANDS if world.labels.get(label) == OPERAND_ON}
    if on - {LAST_OPERAND}:
        return leave
    if staying := sorted(pod.key for pod in _operands(world) if pod.operand not in on):
        return records, (Wait(f"these must leave before the reset: {', '.join(staying)}"),)
    if on:
        return leave
    held = sorted((uuid, pids) for uuid, pids in case.local.clients.items() if pids and uuid in treatment.reset_set)
    if held:
        named = "; ".join(describe_clients(uuid, pids, world.pods or ()) for uuid, pids in held)
        return records, (Wait(f"no reset while processes hold the GPU: {named}", On.REPAIR),)
    return records, ()


def _watch(case: Case, records: Records, live: Attempt, job: Job | None) -> Outcome:
    if job and job.finished_at > 0:
        live = replace(live, acted_at=job.finished_at)
    if job and job.state == "active":  # in another boot as well: its pod may yet begin and reboot the node again
        on = On.REPAIR if job.stuck else _on(records) if job.unbegun else On.OTHER
        return records, (Wait(f"Job {live.job} {job.goes}: {live.remedy}, attempt {live.number}", on),)
    reboots = live.remedy is Remedy.REBOOT_NODE
    if reboots and rebooted(live.boot_id, case.verdict):  # its own Job may well have died of it
        return _ended(case, records, live, "")
    if job is None:
        return _ended(case, records, live, "its Job was removed before it was seen to end")
    if job.state == "failed":
        if job.unbegun:
            return _ended(case, records, replace(live, unbegun=True), f"it never began: {job.unbegun}")
        words, again = EXIT_CODES.get(job.exit_code or 0, (job.said or f"exit code {job.exit_code}", True))
        return _ended(case, records, replace(live, final=not again), words)
    if reboots:
        if job.ended_s < case.config.repair.prove_s:
            return records, (Wait("the reboot's Job ended well; the node must come up in another boot"),)
        return _ended(case, records, live, "its Job ended well, and the node is in the same boot")
    return _ended(case, records, live, "")


def _on(records: Records) -> On:
    """Whoever sees to a kubelet or a registry is called once a Job never began."""
    return On.REPAIR if any(one.unbegun for one in records.attempts) else On.OTHER


def noted(case: Case, records: Records) -> Records:
    """With what became of a Job that was made, whatever keeps the agent from acting: else nobody would know what came
    after a reset, and our own NVML would stay closed for it."""
    live = records.live
    job = next((job for job in case.world.jobs or () if live and job.name == live.job), None)
    if live is None or job is None:
        return records
    if live.stage is Stage.RESERVED:
        return _started(case, records, live)
    return _watch(case, records, live, job)[0]


def _started(case: Case, records: Records, live: Attempt) -> Records:
    return records.latest(replace(live, stage=Stage.STARTED, acted_at=case.verdict.at))


def settled(case: Case, records: Records) -> Records:
    """An attempt whose fault is gone: nothing is started for it, and a Job that runs, or may come, is waited for."""
    world, live = case.world, records.live
    if (
        live is None
        or _may_come(case)
        or any(job.name == live.job and job.state == "active" for job in world.jobs or ())
    ):
        return records
    if live.stage is Stage.RESERVED and world.jobs is not None and live.job not in {job.name for job in world.jobs}:
        return records.unbegun()
    return records.latest(replace(live, stage=Stage.FAILED, said="no fault stands any more"))


def rebooted(boot_id: str, verdict: Verdict) -> bool:
    return bool(boot_id and verdict.boot_id and boot_id != verdict.boot_id)


def _ended(case: Case, records: Records, live: Attempt, failure: str) -> Outcome:
    stage = Stage.FAILED if failure else Stage.DONE
    ended = replace(live, stage=stage, said=failure[:200], ended_at=int(case.verdict.at))
    return records.latest(ended), (Wait(f"{live.remedy}, attempt {live.number}: {failure or 'done'}"),)


def _prove(case: Case, treatment: Treatment, records: Records, live: Attempt) -> Outcome:
    records = _restored(records)
    if again := _again(treatment, live):
        return _ended(case, records, live, again)
    left = [fault for fault in treatment.unproved if concerns(live, fault)]
    if not left:
        return records, (Wait(f"the cure by {live.remedy} is proved: the GPUs must stay well for a while"),)
    # An agent that was down, or cut off from its own records, has yet to look: its absence makes no cure none.
    looked = live.remedy is not Remedy.RESET_GPU or case.verdict.resets.issuperset(live.gpus)
    # What ends by its absence has that time besides.
    given_s = case.config.repair.prove_s + max(
        one.finding.clear_s or 0.0 for fault in left for one in (fault, *fault.joined)
    )
    if not looked or case.local.stage_s < given_s:
        return records, (Wait(f"{live.remedy} is done: its cure must be proved within {given_s:.0f} s"),)
    return _ended(case, records, live, "the fault stands after it")


def _again(treatment: Treatment, live: Attempt) -> str:
    """What was seen after a reset, in words; a reboot is proved by the boot that a fault was last seen in."""
    if live.remedy is not Remedy.RESET_GPU:
        return ""
    again = [f.finding.id for f in treatment.faults if concerns(live, f) and f.after == live.job]
    return f"{', '.join(again)} came again after it" if again else ""


def _restored(records: Records) -> Records:
    """The operands' labels go back with the very write that says so."""
    return replace(records, paused=False)


def operand_labels(world: World, settings: Repair, old: Records, new: Records) -> dict[str, str]:
    """Labels to write: off for a reset, and back after it unless somebody else set them meanwhile.

    Whoever makes no resets, nor has made one, has no right to write them.
    """
    if not (settings.reset_gpu or old.paused or new.paused):
        return {}
    now, then = (OPERAND_ON, OPERAND_PAUSED) if new.paused else (OPERAND_PAUSED, OPERAND_ON)
    needed = new.paused and any(pod.operand != LAST_OPERAND for pod in _operands(world))
    kept = {LAST_OPERAND} if needed else set()
    return {label: then for label in OPERANDS if world.labels.get(label) == now and label not in kept}


def _operands(world: World) -> Iterator[Pod]:
    """gpu-operator's pods that are still there."""
    return (pod for pod in world.pods or () if pod.operand and not pod.finished)
