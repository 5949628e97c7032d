"""Evidence that a repair would destroy: a Job of its own before the first remedy of an incident. Pure.

It begins while the node is drained, so that no pod waits for it. A repair waits for it, but not for long: that it
fails, or can't be made, is no obstacle.
"""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256

from agent.model.steps import StartJob, Step, Wait
from agent.remediation.case import Case, Treatment
from agent.remediation.records import COLLECTS, Collected, Records

COLLECT = "collect"  # its Job's remedy, for the template
_MORE_S = 60  # than the Job may run, for it to be made and to be seen to have ended


def collected(case: Case, treatment: Treatment, records: Records) -> tuple[Records, tuple[Step, ...], bool]:
    """The records, what to do, and whether a repair is to wait for it."""
    world, settings = case.world, case.config.repair
    if not settings.collect or records.attempts or treatment.idle or (records.collected and records.collected.over):
        return records, (), False
    if (begun := records.collected) is None:
        first = min(treatment.faults, key=lambda fault: fault.since)
        incident = f"{world.uid} {first.finding.id} {first.since:.3f} {COLLECT}"
        name = f"{COLLECTS}{sha256(incident.encode()).hexdigest()[:10]}"
        begun = Collected(name, case.verdict.boot_id, world.clock_s)
        return replace(records, collected=begun), (Wait("evidence is to be collected before the repair"),), True
    most_s = settings.collect_s + _MORE_S
    lasts = case.verdict.boot_id == begun.boot_id and 0 < world.clock_s - begun.boot_s + 1 <= most_s
    job = next((job for job in world.jobs or () if job.name == begun.job), None)
    if not lasts or (job and job.state != "active"):
        return replace(records, collected=replace(begun, over=True)), (), False
    start = (
        (StartJob(begun.job, COLLECT, tuple(sorted(treatment.gpus))),) if job is None and world.jobs is not None else ()
    )
    why = f"Job {begun.job} collects evidence before the repair, for {settings.collect_s:.0f} s at most"
    return records, (*start, Wait(why)), True
