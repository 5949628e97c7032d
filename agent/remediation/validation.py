"""The check that a node must pass before it returns, where one is configured: a Job on it, or DCGM's diagnosis.

A new node passes the same diagnosis before its startup taint goes (``agent/remediation/gate.py``).
"""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256

from agent.model.describe import describe_clients
from agent.model.fault import Fault, Severity, Verdict
from agent.model.remedy import Remedy
from agent.model.steps import Announce, Diagnose, On, StartJob, Step, Wait
from agent.model.text import printable
from agent.model.world import Clients, World
from agent.remediation.case import Case, Outcome
from agent.remediation.events import event_name
from agent.remediation.records import Kind, Records, Stage, Validation
from agent.remediation.recurrence import of_incident
from agent.remediation.repair import LEAST_PAUSE_S

DISMISSED = "check@node"  # the dismissal that lets a node return without it
CHECK = "check"  # a Job's remedy, for its template
_TO_BE = "the node is to be checked before it returns"
_MOST_RUNS = 3  # of a diagnosis that the agent's end cut off
_AGAIN_S = 30  # after one that could not be run
_MOST_DOUBLED = 8  # times the pause after a Job that never began

Checked = tuple[Validation | None, tuple[Step, ...]]


def awaited(records: Records) -> str:
    """The name of the diagnosis that the node waits for; empty for none."""
    check = records.validation
    return check.run if check and check.kind is not Kind.JOB and check.stage.live else ""


def validate(case: Case, records: Records, ended: tuple[Fault, ...], may: bool) -> Outcome:
    """What keeps the node from its return, with the records of it; nothing where it may return.

    ``ended`` are the faults that stood when the Node was last written to. Those that a person dismissed ask for no
    check. It is reserved with the very write that forgets the faults.
    """
    if DISMISSED in case.world.dismissed:
        return Records(), ()
    if records.validation:
        check, steps = _goes_on(case, records.validation, may)
        return replace(records, validation=check) if check else Records(), steps
    dismissed = case.verdict.dismissed
    cured = [f for f in ended if f.finding.severity is Severity.FATAL and f.finding.id not in dismissed]
    return (Records(validation=_reserved(case, records, cured)), (Wait(_TO_BE),)) if cured else (Records(), ())


def _goes_on(case: Case, check: Validation, may: bool) -> Checked:
    """The check as it should be written, none once it is passed, and what to do."""
    if check.stage is Stage.FAILED:
        return check, failure(case.world, check)
    configured = case.config.repair.diagnose
    level = of_incident(case).level(configured) if configured else None
    if check.kind is not (kind := _kind(case)):  # the configuration asks for the other kind by now
        name = kind + check.name.rpartition("-")[2]
        anew = replace(check, kind=kind, name=name, number=1, stage=Stage.RESERVED, blocked_at=0.0, said="")
        return anew, (Wait(_TO_BE),)
    return diagnosis(case, level, check, may) if level else _job(case, check, may)


def _job(case: Case, check: Validation, may: bool) -> Checked:
    """A Job that never began tried nothing: the next one follows after a pause that doubles."""
    jobs, settings = case.world.jobs, case.config.repair
    job = next((job for job in jobs or () if job.name == check.job), None)
    if job is None and check.stage is Stage.RESERVED:
        pause_s = max(settings.pause_s, LEAST_PAUSE_S) * 2 ** min(check.number - 2, _MOST_DOUBLED)
        if check.blocked_at and abs(case.verdict.at - check.blocked_at) < pause_s:
            why = f"the check's Job never began ({check.said}): the next one follows after a pause of {pause_s:.0f} s"
            return check, (Wait(why, On.REPAIR),)
        start = (StartJob(check.job, CHECK, check.uuids),) if may and jobs is not None else ()
        return check, (*start, Wait("the node is checked before it returns"))
    if job and job.state == "succeeded":
        return None, ()
    if job and job.state == "active":
        on = On.REPAIR if job.stuck or (job.unbegun and check.blocked_at) else On.OTHER
        return replace(check, stage=Stage.STARTED), (
            Wait(f"Job {job.name} {job.goes}: the check before the return", on),
        )
    if job and job.unbegun:
        said = printable(job.unbegun)[:200]
        anew = replace(check, number=check.number + 1, stage=Stage.RESERVED, blocked_at=case.verdict.at, said=said)
        return anew, (Wait(f"the check's Job never began ({said})", On.REPAIR),)
    why = "its Job was removed before it was seen to end" if job is None else (job.said or f"exit {job.exit_code}")
    return _failed(case, check, why)


def diagnosis(case: Case, level: int, check: Validation, may: bool) -> Checked:
    """Of its state only this agent's own life knows: whoever finds one begun and knows nothing of it begins anew."""
    verdict, world, settings = case.verdict, case.world, case.config.repair
    uuids = check.uuids or tuple(sorted(card.uuid for card in verdict.cards.values() if card.uuid))
    diagnosed = world.diagnosed if world.diagnosed and world.diagnosed.name == check.run else None
    what = f"DCGM's diagnosis, level {level}"
    if diagnosed is None and check.stage is Stage.STARTED:
        if check.number >= _MOST_RUNS:
            return _failed(case, check, f"{what}, was cut off {check.number} times by the agent's end")
        anew = replace(check, number=check.number + 1, stage=Stage.RESERVED)
        return anew, (Wait(f"{what}, was cut off by the agent's end and is run anew"),)
    if diagnosed and diagnosed.state == "passed":
        return None, ()
    if diagnosed and diagnosed.state == "failed":
        return _failed(case, check, f"{what}: {diagnosed.said}")
    if diagnosed and diagnosed.state == "active":
        started = replace(check, stage=Stage.STARTED)
        return started, (Wait(f"{what}, runs before {check.kind.before}, on {', '.join(uuids)}"),)
    if not may:
        return replace(check, blocked_at=0.0), (Wait(f"{what}, is to run before {check.kind.before}"),)
    busy = _busy(level, uuids, world, case.local.clients)
    why = busy or (diagnosed.said if diagnosed else "")
    since = (check.blocked_at or case.verdict.at) if why else 0.0
    late = bool(why and check.blocked_at and case.local.stage_s >= settings.deadline_s)
    if late and check.kind is not Kind.GATE:  # a new node's engine may come at any time, and nobody waits for a permit
        return _failed(case, check, f"{what}, could not be run for {settings.deadline_s} s: {why}")
    start = () if busy or (diagnosed and diagnosed.ended_s < _AGAIN_S) else (Diagnose(check.run, level, uuids),)
    state = f"can't be run yet: {why}" if why else "begins"
    return replace(check, blocked_at=since), (*start, Wait(f"{what}, {state}", On.REPAIR if late else On.OTHER))


def _busy(level: int, uuids: tuple[str, ...], world: World, clients: Clients) -> str:
    """Why no GPU may be taken up now. Level 1 takes none for itself."""
    if not uuids:
        return "no GPU of this node has a UUID that is known"
    for uuid in uuids if level > 1 else ():
        if uuid not in clients:
            return f"{uuid} is not read"
        if clients[uuid]:
            return f"processes hold the GPU: {describe_clients(uuid, clients[uuid], world.pods or ())}"
    return ""


def _failed(case: Case, check: Validation, why: str) -> Checked:
    failed = replace(check, stage=Stage.FAILED, said=printable(why)[:200], ended_at=int(case.verdict.at))
    return failed, (Wait(f"the check before {check.kind.before} failed", On.REPAIR),)


def failure(world: World, check: Validation) -> tuple[Step, ...]:
    """One that failed: its one Event, and what is waited for."""
    name, failed = event_name(world, check.run), f"the check before {check.kind.before} failed ({check.said})"
    told = Announce(name, True, "CheckFailed", f"the node stays out of service: {failed}")
    why = f"{failed}: a person must decide; {DISMISSED} dismisses it"
    return (*(() if name in world.announced else (told,)), Wait(why, On.REPAIR))


def _reserved(case: Case, records: Records, cured: list[Fault]) -> Validation:
    verdict, kind = case.verdict, _kind(case)
    first = min(cured, key=lambda fault: fault.since)
    incident = f"{case.world.uid} {first.finding.id} {first.since:.3f} {CHECK}"
    name = f"{kind}{sha256(incident.encode()).hexdigest()[:10]}"
    whole = kind is Kind.DIAGNOSIS and not all(fault.finding.pci for fault in cured)  # a node's fault was every GPU's
    reset = {uuid for one in records.attempts if one.remedy is Remedy.RESET_GPU for uuid in one.gpus}
    there = {card.uuid for card in verdict.cards.values()}  # with what was reset together with a bad GPU
    repaired = {_card(verdict, fault) for fault in cured} | (reset & there)
    return Validation(kind, name, () if whole else tuple(sorted(repaired - {""})), verdict.boot_id)


def _kind(case: Case) -> Kind:
    """That the configuration asks for."""
    return Kind.DIAGNOSIS if case.config.repair.diagnose else Kind.JOB


def _card(verdict: Verdict, fault: Fault) -> str:
    """The UUID of what is in the slot now: the fault may have ended because that is another card."""
    card = verdict.cards.get(fault.finding.pci)
    return (card.uuid if card else "") or fault.uuid
