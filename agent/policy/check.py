"""The check that a node must pass before it returns, where one is configured: a Job on it once its faults are gone."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256

from agent.model import Fault, Remedy, Severity, Verdict
from agent.policy.attempts import Attempt, Records, Stage
from agent.world import On, StartJob, Step, Wait, World

DISMISSED = "check@node"  # the word that lets a node return without it
CHECK = "check"  # a Job's remedy, for its template


def without(records: Records) -> Records:
    """A fault that stands again: the check began too early, and comes again after the cure."""
    return replace(records, attempts=tuple(one for one in records.attempts if one.remedy is not Remedy.NONE))


def check(
    verdict: Verdict, world: World, records: Records, ended: tuple[Fault, ...], may: bool
) -> tuple[Records, tuple[Step, ...]]:
    """What keeps the node from its return, with the records of it; nothing where it may return.

    ``ended`` are the faults that stood when the Node was last written to. Those that a person dismissed ask for no
    check. An attempt of remedy "none" is the check's: reserved with the very write that forgets the faults.
    """
    if DISMISSED in world.dismissed:
        return Records(), ()
    last = records.attempts[-1] if records.attempts else None
    if last is None or last.remedy is not Remedy.NONE:
        cured = [f for f in ended if f.finding.severity is Severity.FATAL and f.finding.id not in verdict.dismissed]
        if not cured:
            return Records(), ()
        return Records((_reserved(verdict, world, cured),)), (Wait("the node is to be checked before it returns"),)
    if last.stage is Stage.FAILED:
        why = f"the check before the return failed ({last.said}): a person must decide; {DISMISSED} dismisses it"
        return records, (Wait(why, On.REPAIR),)
    job = next((job for job in world.jobs or () if job.name == last.job), None)
    if job is None and last.stage is Stage.RESERVED:
        start = (StartJob(last.job, CHECK, last.uuids),) if may and world.jobs is not None else ()
        return records, (*start, Wait("the node is checked before it returns"))
    if job and job.state == "succeeded":
        return Records(), ()
    if job and job.state == "active":
        return records.latest(replace(last, stage=Stage.STARTED)), (Wait(f"Job {job.name} checks the node"),)
    said = "its Job was removed before it was seen to end" if job is None else (job.said or f"exit {job.exit_code}")
    failed = replace(last, stage=Stage.FAILED, said=said[:200], ended_at=int(verdict.at))
    return records.latest(failed), (Wait("the check before the return failed", On.REPAIR),)


def _reserved(verdict: Verdict, world: World, cured: list[Fault]) -> Attempt:
    first = min(cured, key=lambda fault: fault.since)
    incident = f"{world.uid} {first.finding.id} {first.since:.3f} {CHECK}"
    name = f"gpu-health-{CHECK}-{sha256(incident.encode()).hexdigest()[:10]}"
    uuids = tuple(sorted({fault.uuid for fault in cured if fault.uuid}))
    return Attempt(Remedy.NONE, 1, name, uuids, verdict.boot_id, Stage.RESERVED)
