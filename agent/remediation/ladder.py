"""Which remedy comes next, and when a person must decide: what does not help is made again, then the next harder."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from agent.config.settings import Repair
from agent.model.fault import Fault, Sets
from agent.model.remedy import LADDER, Remedy
from agent.remediation.case import Treatment
from agent.remediation.records import Attempt, Records, Stage


def possible(settings: Repair, treatment: Treatment) -> tuple[Remedy, ...]:
    """The remedies that are configured and possible, mildest first: a GPU's must name its GPU, or it takes them all."""
    there = (remedy for remedy in LADDER if remedy.row.whole_node or treatment.gpus)
    return tuple(remedy for remedy in there if settings.offers(remedy))


def current(treatment: Treatment, records: Records) -> Attempt | None:
    """The attempt that is reserved, runs or is to be proved; none once all that is left is no matter of it."""
    last = records.attempts[-1] if records.attempts else None
    if last is None or last.stage is Stage.FAILED:
        return None
    left = treatment.unproved
    over = last.stage is Stage.DONE and left and not any(concerns(last, fault) for fault in left)
    return None if over else last


def aimed(treatment: Treatment, records: Records, settings: Repair) -> tuple[Remedy | None, str]:
    """The remedy to take, or None and why a person must decide."""
    if attempt := current(treatment, records):
        return attempt.remedy, ""
    due = treatment.outstanding
    if due.held:
        return None, f"a person must decide about {due.held[0].finding.id}"
    if due.mildest not in LADDER:
        return None, f"no repair can {due.remedy}: a person must decide"
    attempts = own(due, records)
    least = max([due.mildest.rank, *(attempt.remedy.rank for attempt in attempts)])
    for remedy in possible(settings, due):
        tried = [attempt for attempt in attempts if attempt.remedy is remedy and not attempt.unbegun]
        if remedy.rank >= least and len(tried) < settings.max_attempts and not any(a.final for a in tried):
            return (None, why) if remedy is Remedy.RESET_GPU and (why := done_already(due.faults)) else (remedy, "")
    if not attempts:
        return None, f"no repair is configured for {due.remedy}: a person must decide"
    last = attempts[-1]
    return None, f"a person must decide: {last.remedy} failed, attempt {last.number} ({last.said}), and nothing is left"


def done_already(faults: Iterable[Fault]) -> str:
    """Why a person must say whether a reset is due: in doubt there is no second repair of one incident."""
    pre_start = [fault.finding.id for fault in faults if fault.pre_start]
    if not pre_start:
        return ""
    return (
        f"a person must decide about {', '.join(pre_start)}: logged before the agent's start, and the GPU asks for "
        "nothing, as after a reset"
    )


def effective(treatment: Treatment, records: Records, settings: Repair) -> Treatment:
    """With the remedy that the node is drained for, its faults' or the harder one that the repair has come to, and with
    the GPUs of its reset.

    Nothing is repaired beside a fault that a person must decide about, so no pod makes way for that.
    """
    remedy = aimed(treatment, records, settings)[0] or _worst(treatment, records)
    return replace(treatment, remedy=remedy, linked=in_force(treatment.linked, records.live, settings.reset_gpu))


def in_force(together: Sets, live: Attempt | None, template: str | None) -> Sets:
    """A reset that is reserved keeps its GPUs; where none is configured no healthy GPU's pods make way for it."""
    if live and live.remedy is Remedy.RESET_GPU:
        return {**together, **dict.fromkeys(live.uuids, frozenset(live.along))}
    return together if template else {}


def _worst(treatment: Treatment, records: Records) -> Remedy:
    due = treatment.outstanding
    wanted = Remedy.CONTACT_SUPPORT if due.held else due.mildest
    return max([wanted, *(attempt.remedy for attempt in own(due, records))], key=lambda one: one.rank)


def own(treatment: Treatment, records: Records) -> list[Attempt]:
    """The attempts that were for one of these faults; what another GPU needed counts for nothing here."""
    return [one for one in records.attempts if any(concerns(one, fault) for fault in treatment.faults)]


def made(remedy: Remedy, treatment: Treatment, records: Records) -> int:
    """How many attempts there were at this remedy. Of idle GPUs those whose Job never began outlive the records."""
    ids = {key for fault in treatment.faults if treatment.idle for key in fault.ids}
    before = (one.number for key, one in records.idle.failed_resets.items() if one.unbegun and key in ids)
    return max(before, default=0) + sum(attempt.remedy is remedy for attempt in records.attempts)


def concerns(attempt: Attempt, fault: Fault) -> bool:
    """Whether an attempt is to cure this fault: a reset those of its GPUs, a reboot all that was seen in its boot."""
    if not attempt.uuids or fault.uuid in attempt.uuids:
        return True
    return attempt.remedy.row.whole_node and fault.boot_id == attempt.boot_id
