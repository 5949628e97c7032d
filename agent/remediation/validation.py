"""The check that a node must pass before it returns, where one is configured: a Job on it, or DCGM's diagnosis."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256

from agent.config.settings import Repair
from agent.model.describe import told
from agent.model.fault import Fault, Remedy, Severity, Verdict
from agent.model.steps import Announce, Diagnose, On, StartJob, Step, Wait
from agent.model.text import printable
from agent.model.world import Clients, World
from agent.remediation.events import event_name
from agent.remediation.records import DIAGNOSIS, Attempt, Records, Stage

DISMISSED = "check@node"  # the word that lets a node return without it
CHECK = "check"  # a Job's remedy, for its template
_JOB = f"gpu-health-{CHECK}-"
_TO_BE = "the node is to be checked before it returns"
_MOST_RUNS = 3  # of a diagnosis that the agent's end cut off
_AGAIN_S = 30  # after one that could not be run

Checked = tuple[Records, tuple[Step, ...]]


def without(records: Records) -> Records:
    """A fault that stands again: the check began too early, and comes again after the cure."""
    return replace(records, attempts=tuple(one for one in records.attempts if one.remedy is not Remedy.NONE))


def awaited(records: Records) -> str:
    """The name of the diagnosis that a node's return waits for; empty for none."""
    live = records.live
    return _run(live) if live and live.job.startswith(DIAGNOSIS) else ""


def check(
    verdict: Verdict,
    world: World,
    settings: Repair,
    records: Records,
    ended: tuple[Fault, ...],
    clients: Clients,
    may: bool,
) -> Checked:
    """What keeps the node from its return, with the records of it; nothing where it may return.

    ``ended`` are the faults that stood when the Node was last written to. Those that a person dismissed ask for no
    check. An attempt of remedy "none" is the check's: reserved with the very write that forgets the faults.
    """
    if DISMISSED in world.dismissed:
        return Records(), ()
    last = records.attempts[-1] if records.attempts else None
    kind = DIAGNOSIS if settings.diagnose else _JOB
    if last is None or last.remedy is not Remedy.NONE:
        cured = [f for f in ended if f.finding.severity is Severity.FATAL and f.finding.id not in verdict.dismissed]
        if not cured:
            return Records(), ()
        return Records((_reserved(verdict, world, records, cured, kind),)), (Wait(_TO_BE),)
    if last.stage is Stage.FAILED:
        why = f"the check before the return failed ({last.said}): a person must decide; {DISMISSED} dismisses it"
        return records, (*_announced(world, last), Wait(why, On.REPAIR))
    if not last.job.startswith(kind):  # the configuration asks for the other kind by now
        other = kind + last.job.rpartition("-")[2]
        anew = replace(last, job=other, number=1, stage=Stage.RESERVED, acted_at=0.0)
        return records.latest(anew), (Wait(_TO_BE),)
    if settings.diagnose:
        return _diagnosis(verdict, world, settings, settings.diagnose, records, last, clients, may)
    return _job(verdict, world, records, last, may)


def _job(verdict: Verdict, world: World, records: Records, last: Attempt, may: bool) -> Checked:
    job = next((job for job in world.jobs or () if job.name == last.job), None)
    if job is None and last.stage is Stage.RESERVED:
        start = (StartJob(last.job, CHECK, last.uuids),) if may and world.jobs is not None else ()
        return records, (*start, Wait("the node is checked before it returns"))
    if job and job.state == "succeeded":
        return Records(), ()
    if job and job.state == "active":
        return records.latest(replace(last, stage=Stage.STARTED)), (Wait(f"Job {job.name} checks the node"),)
    said = "its Job was removed before it was seen to end" if job is None else (job.said or f"exit {job.exit_code}")
    return _failed(verdict, records, last, said)


def _diagnosis(
    verdict: Verdict,
    world: World,
    settings: Repair,
    level: int,
    records: Records,
    last: Attempt,
    clients: Clients,
    may: bool,
) -> Checked:
    """Of its state only this agent's own life knows: whoever finds one begun and knows nothing of it begins anew."""
    uuids = last.uuids or tuple(sorted(card.uuid for card in verdict.cards.values() if card.uuid))
    seen = world.diagnosed if world.diagnosed and world.diagnosed.name == _run(last) else None
    what = f"DCGM's diagnosis, level {level}"
    if seen is None and last.stage is Stage.STARTED:
        if last.number >= _MOST_RUNS:
            return _failed(verdict, records, last, f"{what}, was cut off {last.number} times by the agent's end")
        anew = replace(last, number=last.number + 1, stage=Stage.RESERVED)
        return records.latest(anew), (Wait(f"{what}, was cut off by the agent's end and is run anew"),)
    if seen and seen.state == "passed":
        return Records(), ()
    if seen and seen.state == "failed":
        return _failed(verdict, records, last, f"{what}: {seen.said}")
    if seen and seen.state == "active":
        started = records.latest(replace(last, stage=Stage.STARTED))
        return started, (Wait(f"{what}, runs before the node returns, on {', '.join(uuids)}"),)
    if not may:
        return records.latest(replace(last, acted_at=0.0)), (Wait("the node is checked before it returns"),)
    busy = _busy(level, uuids, world, clients)
    why = busy or (seen.said if seen else "")
    began = (last.acted_at or verdict.at) if why else 0.0  # since when it could not be run
    if why and verdict.at - began >= settings.deadline_s:
        return _failed(verdict, records, last, f"{what}, could not be run for {settings.deadline_s} s: {why}")
    start = () if busy or (seen and seen.ended_s < _AGAIN_S) else (Diagnose(_run(last), level, uuids),)
    told_why = f"can't be run yet: {why}" if why else "begins"
    return records.latest(replace(last, acted_at=began)), (*start, Wait(f"{what}, {told_why}"))


def _run(last: Attempt) -> str:
    """Another one for each attempt: what an earlier one found proves nothing for a later."""
    return f"{last.job}-{last.number}"


def _busy(level: int, uuids: tuple[str, ...], world: World, clients: Clients) -> str:
    """Why no GPU may be taken up now. Level 1 takes none for itself."""
    if not uuids:
        return "no GPU of this node has a UUID that is known"
    for uuid in uuids if level > 1 else ():
        if uuid not in clients:
            return f"{uuid} is not read"
        if clients[uuid]:
            return f"processes hold the GPU: {told(uuid, clients[uuid], world.pods or ())}"
    return ""


def _failed(verdict: Verdict, records: Records, last: Attempt, said: str) -> Checked:
    said = printable(said)[:200]
    failed = replace(last, stage=Stage.FAILED, said=said, ended_at=int(verdict.at))
    return records.latest(failed), (Wait("the check before the return failed", On.REPAIR),)


def _announced(world: World, last: Attempt) -> tuple[Step, ...]:
    """Its one Event."""
    name = event_name(world, _run(last))
    message = f"the node does not return to service: the check before the return failed ({last.said})"
    return () if name in world.announced else (Announce(name, True, "CheckFailed", message),)


def _reserved(verdict: Verdict, world: World, records: Records, cured: list[Fault], kind: str) -> Attempt:
    first = min(cured, key=lambda fault: fault.since)
    incident = f"{world.uid} {first.finding.id} {first.since:.3f} {CHECK}"
    name = f"{kind}{sha256(incident.encode()).hexdigest()[:10]}"
    whole = kind == DIAGNOSIS and not all(fault.finding.pci for fault in cured)  # a node's fault was one of every GPU
    reset = {uuid for one in records.attempts if one.remedy is Remedy.RESET_GPU for uuid in one.gpus}
    there = {card.uuid for card in verdict.cards.values()}  # with what was reset together with a bad GPU
    repaired = {_card(verdict, fault) for fault in cured} | (reset & there)
    uuids = () if whole else tuple(sorted(repaired - {""}))
    return Attempt(Remedy.NONE, 1, name, uuids, verdict.boot_id, Stage.RESERVED)


def _card(verdict: Verdict, fault: Fault) -> str:
    """The UUID of what is in the slot now: the fault may have ended because that is another card."""
    card = verdict.cards.get(fault.finding.pci)
    return (card.uuid if card else "") or fault.uuid
