"""Repair: which remedy comes next, what must be true before it starts, and whether it helped. Pure.

Reserve, then act: an attempt is written to the Node before its Job is created, and the Job's name is the attempt's
own, so that whoever dies in between finds it again instead of repairing twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from hashlib import sha256

from agent.config.settings import Repair
from agent.model.describe import told
from agent.model.fault import Fault, Remedy, Verdict
from agent.model.ownership import OPERAND_ON, OPERAND_PAUSED, OPERANDS
from agent.model.steps import On, StartJob, Step, Wait
from agent.model.world import Job, World
from agent.remediation.case import Case, Treatment, in_force
from agent.remediation.nvidia_smi import EXIT_CODES
from agent.remediation.records import Attempt, Records, Stage

LADDER = (Remedy.RESET_GPU, Remedy.REBOOT_NODE, Remedy.REPLACE_NODE)

Repaired = tuple[Records, tuple[Step, ...]]


def templates(settings: Repair, treatment: Treatment) -> tuple[Remedy, ...]:
    """The remedies that are configured and possible, mildest first."""
    there = {
        Remedy.RESET_GPU: settings.reset_gpu and treatment.gpus,  # a reset must name its GPU, or it resets all
        Remedy.REBOOT_NODE: settings.reboot_node,
        Remedy.REPLACE_NODE: settings.replace_node or settings.request_replacement,
    }
    return tuple(remedy for remedy in LADDER if there[remedy])


def current(treatment: Treatment, records: Records) -> Attempt | None:
    """The attempt that is reserved, runs or is to be proved; none once all that is left is no matter of it."""
    last = records.attempts[-1] if records.attempts else None
    if last is None or last.stage is Stage.FAILED:
        return None
    left = treatment.unproved
    over = last.stage is Stage.DONE and left and not any(_concerns(last, fault) for fault in left)
    return None if over else last


def aimed(treatment: Treatment, records: Records, settings: Repair) -> tuple[Remedy | None, str]:
    """The remedy to take, or None and why a person must decide."""
    if attempt := current(treatment, records):
        return attempt.remedy, ""
    due = treatment.outstanding
    for fault in due.faults:
        if fault.finding.remedy is Remedy.CONTACT_SUPPORT:
            return None, f"a person must decide about {fault.finding.id}"
    if due.remedy not in LADDER:
        return None, f"no repair can {due.remedy}: a person must decide"
    attempts = _own(due, records)
    least = max([due.remedy.rank, *(attempt.remedy.rank for attempt in attempts)])
    for remedy in templates(settings, due):
        tried = [attempt for attempt in attempts if attempt.remedy is remedy]
        if remedy.rank >= least and len(tried) < settings.max_attempts and not any(a.final for a in tried):
            return (None, why) if remedy is Remedy.RESET_GPU and (why := done_already(due.faults)) else (remedy, "")
    if not attempts:
        return None, f"no repair is configured for {due.remedy}: a person must decide"
    last = attempts[-1]
    return None, f"a person must decide: {last.remedy} failed, attempt {last.number} ({last.said}), and nothing is left"


def done_already(faults: Iterable[Fault]) -> str:
    """Why a person must say whether a reset is due: in doubt there is no second repair of one incident."""
    late = [fault.finding.id for fault in faults if fault.late]
    if not late:
        return ""
    return (
        f"a person must decide about {', '.join(late)}: logged before the agent's start, and the GPU asks for nothing, "
        "as after a reset"
    )


def effective(treatment: Treatment, records: Records, settings: Repair) -> Treatment:
    """With the remedy that the node is drained for, its faults' or the harder one that the repair has come to, and with
    the GPUs of its reset.

    Nothing is repaired beside a fault that a person must decide about, so no pod makes way for that.
    """
    remedy = aimed(treatment, records, settings)[0] or _worst(treatment, records)
    return replace(treatment, remedy=remedy, linked=in_force(treatment.linked, records.live, settings.reset_gpu))


def _worst(treatment: Treatment, records: Records) -> Remedy:
    due = treatment.outstanding
    held = any(fault.finding.remedy is Remedy.CONTACT_SUPPORT for fault in due.faults)
    wanted = Remedy.CONTACT_SUPPORT if held else due.remedy
    return max([wanted, *(attempt.remedy for attempt in _own(due, records))], key=lambda one: one.rank)


def _own(treatment: Treatment, records: Records) -> list[Attempt]:
    """The attempts that were for one of these faults; what another GPU needed counts for nothing here."""
    return [one for one in records.attempts if any(_concerns(one, fault) for fault in treatment.faults)]


def _concerns(attempt: Attempt, fault: Fault) -> bool:
    """Whether an attempt is to cure this fault: a reset those of its GPUs, a reboot all that was seen in its boot."""
    if not attempt.uuids or fault.uuid in attempt.uuids:
        return True
    return attempt.remedy is not Remedy.RESET_GPU and fault.boot_id == attempt.boot_id


def repair(case: Case, treatment: Treatment, records: Records, drained: bool) -> Repaired:
    """The records as they should be written, and what to do; nothing is done before what it needs is written."""
    world, settings = case.world, case.config.repair
    live = current(treatment, records)
    if live is None:
        return _reserve(case, treatment, records, drained)
    if live.stage is Stage.DONE:
        return _prove(case, treatment, records, live)
    if live.remedy is Remedy.REPLACE_NODE and not settings.replace_node:
        return records, (Wait("condition GpuReplacementRequested asks for another node"),)
    job = next((job for job in world.jobs or () if job.name == live.job), None)
    if live.stage is Stage.STARTED:
        return _watch(case, treatment, records, live, job)
    if job is None and not getattr(settings, live.remedy):
        return _ended(case, treatment, records, live, f"repair.{live.remedy} names no template any more")
    if job is not None:
        return records.latest(replace(live, stage=Stage.STARTED, acted_at=case.at)), ()
    if world.jobs is not None and (why := _overtaken(case, treatment, live)):
        return _restored(records.unbegun()), (Wait(f"{live.remedy}, attempt {live.number}, is not begun: {why}"),)
    if world.jobs is None or not drained:
        return records, (Wait(f"{live.remedy} is reserved, and waits until no pod is in its way"),)
    if live.remedy is Remedy.RESET_GPU and not case.local.released:
        return records, (Wait("our own NVML is closed before the reset"),)
    return records, (StartJob(live.job, str(live.remedy), live.gpus),)


def _overtaken(case: Case, treatment: Treatment, live: Attempt) -> str:
    """Why a reserved attempt that has no Job is not to begin any more: somebody else, or a power cut, came first."""
    if rebooted(live.boot_id, case.verdict):
        return "the node was rebooted before its Job was made"
    if all(fault.proved for fault in treatment.faults if _concerns(live, fault)):
        return "the GPUs were cured before its Job was made"
    return ""


def running(world: World) -> str:
    """The Job of a repair that has not ended: until it has, the node stays as it is."""
    return next((job.name for job in world.jobs or () if job.state == "active"), "")


def _reserve(case: Case, treatment: Treatment, records: Records, drained: bool) -> Repaired:
    world, settings, local = case.world, case.config.repair, case.local
    remedy, why = aimed(treatment, records, settings)
    if remedy is None:
        asked = bool(records.attempts or templates(settings, treatment))
        return _restored(records), (Wait(why, On.REPAIR),) if asked and drained else ()
    if not drained or not local.gathered or world.jobs is None:
        return records, ()
    if name := running(world):  # of an incident whose records are lost
        return records, (Wait(f"Job {name} runs: nothing else is begun"),)
    if not treatment.unproved:
        return records, (Wait("the GPUs were cured by somebody else: they stay well for a while first"),)
    if local.up_s < settings.prove_s and any(rebooted(f.boot_id, case.verdict) for f in case.verdict.faults):
        return records, (Wait("the node was rebooted since its fault was seen: whether that cured it is awaited"),)
    due = treatment.outstanding
    own = _own(due, records)
    last = own[-1] if own else None
    if last and abs(case.at - last.ended_at) < (pause_s := settings.pause_s * 2 ** (len(own) - 1)):
        said = f"{last.remedy}, attempt {last.number}, failed ({last.said})"
        return records, (Wait(f"{said}: {remedy} follows after a pause of {pause_s:.0f} s"),)
    if remedy is Remedy.RESET_GPU:
        records, waits = _clients(case, due, records)
        if waits:
            return records, waits
    else:
        records = _restored(records)
    number = 1 + sum(attempt.remedy is remedy for attempt in records.attempts)
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


def _clients(case: Case, treatment: Treatment, records: Records) -> Repaired:
    """Whoever holds the GPU leaves before a reset: gpu-operator's own by their labels, the rest is named."""
    world = case.world
    if any(world.labels.get(label) == OPERAND_ON for label in OPERANDS):
        return replace(records, paused=True), (Wait("gpu-operator's operands leave the node before the reset"),)
    if staying := [pod.key for pod in world.pods or () if pod.operand and not pod.finished]:
        return records, (Wait(f"these must leave before the reset: {', '.join(sorted(staying))}"),)
    held = sorted((uuid, pids) for uuid, pids in case.local.clients.items() if pids and uuid in treatment.reset_set)
    if held:
        named = "; ".join(told(uuid, pids, world.pods or ()) for uuid, pids in held)
        return records, (Wait(f"no reset while processes hold the GPU: {named}", On.REPAIR),)
    return records, ()


def _watch(case: Case, treatment: Treatment, records: Records, live: Attempt, job: Job | None) -> Repaired:
    if job and job.finished_at:
        live = replace(live, acted_at=job.finished_at)
    if job and job.state == "active":  # in another boot as well: its pod may yet begin and reboot the node again
        return records, (Wait(f"Job {live.job} runs: {live.remedy}, attempt {live.number}"),)
    if live.remedy is Remedy.REBOOT_NODE and rebooted(
        live.boot_id, case.verdict
    ):  # its own Job may well have died of it
        return _ended(case, treatment, records, live, "")
    if job is None:
        return _ended(case, treatment, records, live, "its Job was removed before it was seen to end")
    if job.state == "failed":
        words, again = EXIT_CODES.get(job.exit_code or 0, (job.said or f"exit code {job.exit_code}", True))
        return _ended(case, treatment, records, replace(live, final=not again), words)
    if live.remedy is Remedy.REBOOT_NODE:
        if job.ended_s < case.config.repair.prove_s:
            return records, (Wait("the reboot's Job ended well; the node must come up in another boot"),)
        return _ended(case, treatment, records, live, "its Job ended well, and the node is in the same boot")
    return _ended(case, treatment, records, live, "")


def settled(world: World, records: Records) -> Records:
    """An attempt whose fault is gone: nothing is started for it, and a Job that runs is waited for."""
    live = records.live
    if live is None or any(job.name == live.job and job.state == "active" for job in world.jobs or ()):
        return records
    if live.stage is Stage.RESERVED and world.jobs is not None and live.job not in {job.name for job in world.jobs}:
        return records.unbegun()
    return records.latest(replace(live, stage=Stage.FAILED, said="no fault stands any more"))


def rebooted(boot_id: str, verdict: Verdict) -> bool:
    return bool(boot_id and verdict.boot_id and boot_id != verdict.boot_id)


def _ended(case: Case, treatment: Treatment, records: Records, live: Attempt, failure: str) -> Repaired:
    failure = failure or _again(treatment, live)
    stage = Stage.FAILED if failure else Stage.DONE
    ended = replace(live, stage=stage, said=failure[:200], ended_at=int(case.at))
    return records.latest(ended), (Wait(f"{live.remedy}, attempt {live.number}: {failure or 'done'}"),)


def _prove(case: Case, treatment: Treatment, records: Records, live: Attempt) -> Repaired:
    records = _restored(records)
    if again := _again(treatment, live):
        return _ended(case, treatment, records, live, again)
    left = [fault for fault in treatment.unproved if _concerns(live, fault)]
    if not left:
        return records, (Wait(f"{live.remedy} is proved: the GPUs stay well for a while before the node returns"),)
    # An agent that was down, or cut off from its own records, has yet to look: its absence makes no cure none.
    looked = live.remedy is not Remedy.RESET_GPU or case.verdict.resets.issuperset(live.gpus)
    # What ends by its absence has that time besides.
    given_s = case.config.repair.prove_s + max(
        one.finding.clear_s or 0.0 for fault in left for one in (fault, *fault.joined)
    )
    if not looked or min(case.at - live.ended_at, case.local.up_s) < given_s:
        return records, (Wait(f"{live.remedy} is done: its cure must be proved within {given_s:.0f} s"),)
    return _ended(case, treatment, records, live, "the fault stands after it")


def _again(treatment: Treatment, live: Attempt) -> str:
    """What was seen after a reset, in words; a reboot is proved by the boot that a fault was last seen in."""
    if live.remedy is not Remedy.RESET_GPU:
        return ""
    late = [f.finding.id for f in treatment.faults if _concerns(live, f) and f.finding.evidence.at >= live.acted_at]
    return f"{', '.join(late)} came again after it" if late else ""


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
    return {label: then for label in OPERANDS if world.labels.get(label) == now}


def resets(records: Records) -> dict[str, tuple[float, float]]:
    """GPU UUID → when a reset of it was done and when that was known, Unix seconds: for the judge, who proves cures."""
    last = records.attempts[-1] if records.attempts else None
    if last is None or last.remedy is not Remedy.RESET_GPU or last.stage is not Stage.DONE:
        return {}
    return dict.fromkeys(last.gpus, (last.acted_at, float(last.ended_at)))
