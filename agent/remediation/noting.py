"""What a look adds to the ledger, and the ledger as it is written to the Node. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from agent.model.errors import MalformedError
from agent.model.fault import Verdict, identity
from agent.model.names import HARD_TAINT, HISTORY_ANNOTATION
from agent.model.remedy import Remedy
from agent.model.steps import Wait
from agent.model.world import PermitKind, Taint, World
from agent.remediation.case import Treatment
from agent.remediation.drain import drained
from agent.remediation.ledger import MOST_ENTRIES, End, Entry, Ledger, Moment, Repair, Suspect, ended_by, stands
from agent.remediation.ledger_json import dump, load
from agent.remediation.records import Records
from agent.remediation.situation import Now, Situation

_MOST_FAULTS, _MOST_CARDS, _MOST_REPAIRS = 4, 8, 6


def written(now: Now, records: Records, taints: Iterable[Taint]) -> str | None:
    """The annotation with what this look shows (``noted``); None where it stays as it is, as one that can't be read."""
    try:
        ledger = load(now.case.world.history)
    except MalformedError:
        return None
    text = dump(noted(ledger, now, records, taints))
    return None if text == dump(ledger) else text  # a time before the onset is none that can be read back


def unread(world: World) -> tuple[Wait, ...]:
    """That nobody can read it, for people."""
    try:
        load(world.history)
    except MalformedError as error:
        return (Wait(f"annotation {HISTORY_ANNOTATION}: {error}; nothing is noted there until a person removes it"),)
    return ()


def noted(ledger: Ledger, now: Now, records: Records, taints: Iterable[Taint]) -> Ledger:
    """With what this look shows, and ``taints``: those that the Node bears, or will with the same write."""
    if now.situation is Situation.KEEP_OFF:
        return ledger  # nothing is treated now, and nothing is cured
    case, treatment, entry = now.case, now.treatment, ledger.open
    if entry is None:
        if treatment is None:
            return ledger
        onset = int(min(case.verdict.at, *(fault.since for fault in treatment.faults)))
        entry = Entry({Moment.ONSET: onset}, idle=treatment.idle)
        ledger = replace(ledger, entries=(*ledger.entries, entry))
        while len(ledger.entries) > MOST_ENTRIES:
            ledger = ledger.folded()
    hard = any(taint.key == HARD_TAINT for taint in taints)
    if treatment:
        entry = _of(entry, treatment, case.verdict)
    if kept := _repairs(records):
        entry = replace(entry, repairs=kept)
    if records.collected:
        entry = replace(entry, collected=records.collected.job)
    by = None if treatment else ended_by(entry, case.verdict, case.world)
    if not hard:
        entry = replace(entry, by=by)
    proved = not treatment.unproved if treatment else by is End.PROOF  # a fault may have found no room in the entry
    cured = not stands(entry, case.verdict) and proved
    reached = set(_reached(now, treatment, hard, cured))
    if entry.by:
        reached.add(Moment.ENDED)
    if treatment and treatment.unproved and Moment.PROVED in entry.times:  # it came back
        times = dict(entry.times)
        del times[Moment.PROVED]
        held = not now.records.attempts  # else it is the last repair that failed
        entry = replace(entry, times=times, again=entry.again + held)
    if new := [moment for moment in Moment if moment in reached and moment not in entry.times]:
        entry = _at(entry, new, case.verdict, case.world.clock_s)
    return replace(ledger, entries=(*ledger.entries[:-1], entry))


def _reached(now: Now, treatment: Treatment | None, hard: bool, cured: bool) -> Iterator[Moment]:
    world = now.case.world
    yield Moment.VERDICT
    if hard or world.held(PermitKind.WITHDRAWN):
        yield Moment.PERMIT
    if hard:
        yield Moment.TAINT
    if treatment and now.situation is Situation.WITHDRAWN and drained(world, treatment):
        yield Moment.DRAINED
    if cured and (treatment or (world.tainted and (now.situation is Situation.CURED or not hard))):
        yield Moment.PROVED


def _at(entry: Entry, moments: Iterable[Moment], verdict: Verdict, clock_s: int) -> Entry:
    """With these moments, which are now."""
    at = entry.now(verdict.boot_id, clock_s, verdict.at)
    times = {**entry.times, **dict.fromkeys(moments, at)}
    return replace(entry, times=times, boot_id=verdict.boot_id, boot_s=clock_s)


def _of(entry: Entry, treatment: Treatment, verdict: Verdict) -> Entry:
    """With what it is treated for, beside what it was before."""
    ids = dict.fromkeys((*entry.faults, *(fault.finding.id for fault in treatment.faults)))
    suspects = {suspect.pci: suspect for suspect in entry.suspects}
    for fault in treatment.faults:
        if fault.finding.pci:
            card = identity(fault, verdict.cards)
            suspect = Suspect(fault.finding.pci, fault.uuid, card.serial[:64], card.slot[:64])
            suspects.setdefault(suspect.pci, suspect)
    return replace(
        entry,
        faults=tuple(ids)[:_MOST_FAULTS],
        suspects=tuple(suspects.values())[:_MOST_CARDS],
        gpus=max(entry.gpus, len(verdict.cards)),
        idle=entry.idle and treatment.idle,
    )


def _repairs(records: Records) -> tuple[Repair, ...]:
    found = []
    for one in records.begun:
        remedy = getattr(one, "remedy", Remedy.NONE)
        found.append(Repair(remedy, one.number, one.stage, one.ended_at))
    return tuple(found[-_MOST_REPAIRS:])
