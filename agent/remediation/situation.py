"""The node's one situation, by its name, from one look: whatever the plan does follows from that. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from itertools import islice

from agent.config.settings import Mode
from agent.model.errors import MalformedError, NewerError
from agent.model.fault import Severity
from agent.model.names import DISMISS_ANNOTATION, FAULTS_ANNOTATION, HARD_TAINT, MANAGED_LABEL, STATE_LABEL
from agent.model.ownership import own_cordon
from agent.model.steps import On, Wait
from agent.model.world import Claim, PermitKind, World
from agent.remediation.case import Case, Treatment
from agent.remediation.fence import closed, drivers_taints
from agent.remediation.gate import kept_closed
from agent.remediation.idle_reset import chosen
from agent.remediation.ladder import effective
from agent.remediation.other_controllers import another, upgrading
from agent.remediation.presets import uncordoned
from agent.remediation.records import Records
from agent.remediation.recurrence import replaced, watched, with_replacement
from agent.remediation.repair import CURED, noted, running, until_over
from agent.remediation.stored import Stored, load

_MOST_UNWELL = 8  # pods that are named
_OBSERVED = "mode observe: the node would be withdrawn, and is only reported"
_OBSERVED_WITHDRAWN = (
    "mode observe: the node stays withdrawn until its cure is proved; no pod is moved and nothing is repaired"
)


class Situation(Enum):
    OPTED_OUT = auto()  # a person wants nothing of us here
    KEEP_OFF = auto()  # the GPUs are somebody else's for now: a driver upgrade, a change of MIG
    NEWER = auto()  # a newer agent wrote the stored state
    MALFORMED = auto()  # nobody can read it
    ANOTHER_AGENT = auto()  # one that began later acts on this node
    UNEXPLAINED = auto()  # our hard taint stands, and nothing says what for
    ANOTHERS = auto()  # another controller repairs the node
    UNLISTED = auto()  # fences may stand on it, and can't be listed
    # To be treated:
    OBSERVED = auto()  # in mode observe
    PAUSED = auto()  # while all agents are to pause
    TO_WITHDRAW = auto()  # the permit, the hard taint or a fence is missing
    WITHDRAWN = auto()  # all are there: it is drained and repaired
    BY_HAND = auto()  # all are there, in mode taint
    # Not to be treated any more, but the hard taint stands:
    HELD = auto()  # a repair's Job runs on it
    BLIND = auto()  # whether a fault stands can't be seen
    CURED = auto()  # it is checked where that is asked for, and returns
    IN_SERVICE = auto()


@dataclass(frozen=True, slots=True)
class Now:
    """What one look shows; from ANOTHERS on with all that is stored and what is to be treated.

    KEEP_OFF has what is stored.
    """

    situation: Situation
    stands: tuple[Wait, ...]  # why it stands still
    case: Case
    stored: Stored | None = None
    treatment: Treatment | None = None
    records: Records = field(default_factory=Records)  # with what is known of idle GPUs by now
    waits: tuple[Wait, ...] = ()  # why idle GPUs are not reset


def situation(case: Case) -> Now:
    world, config = case.world, case.config
    if not world.managed:
        value = world.labels.get(MANAGED_LABEL, "false")
        why = f"the node's label {MANAGED_LABEL}={value} opts it out: nothing is written to it"
        return Now(Situation.OPTED_OUT, (Wait(f"{why}, and a draining permit goes back", On.STOPPED),), case)
    try:
        stored = load(world.stored, 0.0) if world.stored is not None else None
    except NewerError as error:
        why = f"annotation gpu-health-agent/faults: {error}; it is only reported"
        return Now(Situation.NEWER, (Wait(why, On.STOPPED),), case)
    except MalformedError as error:
        why = f"annotation gpu-health-agent/faults: {error}; remove it to let the agent act again"
        return Now(Situation.MALFORMED, (Wait(why, On.STOPPED),), case)
    own, writer = case.local.claim, stored.writer if stored else None
    if own and writer and writer.life != own.life and writer > own:
        return Now(Situation.ANOTHER_AGENT, (Wait(_overtaken(writer), On.STOPPED),), case)
    if why := upgrading(world.labels):
        records = noted(case, stored.records.stopped) if stored else Records()
        return Now(Situation.KEEP_OFF, (_aside(why, case),), case, stored, records=records)
    if world.tainted and stored is None and not case.verdict.fatal:
        why = f"the node bears {HARD_TAINT}, and no annotation gpu-health-agent/faults says what for"
        return Now(Situation.UNEXPLAINED, (Wait(f"{why}: a person must remove the taint", On.STOPPED),), case)
    treatment, records, waits = chosen(case, stored.records if stored else Records())
    records = replace(records, cordoned=records.cordoned or own_cordon(world.cordon_reason))
    if treatment and not (treatment.idle or treatment.unproved or world.tainted):
        treatment, waits = None, (*waits, Wait(CURED))  # before it was withdrawn
    evicts = config.mode is Mode.EVICT
    if treatment:
        records = replace(records, validation=None)  # it began too early, and comes again after the cure
        if evicts:
            treatment = effective(with_replacement(case, treatment), records, config.repair)
        began_s = records.drain.boot_s if records.drain else 0.0
        if not evicts or world.paused or another(world) or world.unlisted or began_s < case.local.opted_out_at:
            records = records.stopped
    which, stands = _named(case, treatment)
    if treatment and which is not Situation.WITHDRAWN:
        records = noted(case, records)
    return Now(which, stands, case, stored, treatment, records, waits)


def _aside(why: str, case: Case) -> Wait:
    if not case.forgotten:
        return Wait(f"{why}: NVML is closed, and what the kernel log says is only reported")
    lasts = f"{why} for over {case.config.policy.aside_s / 3600:g} h, which counts as forgotten"
    return Wait(f"{lasts}: NVML stays closed and nothing is done until a person ends it", On.STOPPED)


def _overtaken(writer: Claim) -> str:
    if writer.by_hand:
        who = f"another agent, started by hand ({writer.life}), acts on this node"
        return f"{who}: once it has ended, start this one anew"
    who = f"another agent acts on this node, in the pod with UID {writer.life}"
    return f"{who}: this one writes nothing while that pod is there"


def _named(case: Case, treatment: Treatment | None) -> tuple[Situation, tuple[Wait, ...]]:
    world = case.world
    if why := another(world):
        return Situation.ANOTHERS, (Wait(f"{why}: it is only reported on"),)
    if world.unlisted:
        why = f"devices may be fenced, and the fences can't be listed ({world.unlisted}): taint and permit stay"
        return Situation.UNLISTED, (Wait(why, On.REFUSED),)
    if treatment:
        if case.config.mode is Mode.OBSERVE:
            return Situation.OBSERVED, (Wait(_OBSERVED_WITHDRAWN if world.tainted else _OBSERVED),)
        if world.paused:
            why = f"paused: {world.paused}; nothing is withdrawn, evicted or repaired"
            return Situation.PAUSED, (Wait(why, On.STOPPED),)
        if not (world.tainted and world.held(PermitKind.WITHDRAWN) and closed(case, treatment)):
            return Situation.TO_WITHDRAW, ()
        if case.config.mode is Mode.TAINT:
            why = "mode taint: no pod is moved and nothing is repaired; the node returns once its cure is proved"
            return Situation.BY_HAND, (Wait(why),)
        return Situation.WITHDRAWN, ()
    if not world.tainted:
        return Situation.IN_SERVICE, ()
    if job := running(world):
        return Situation.HELD, (Wait(f"{job}: the node stays withdrawn until it has ended", until_over(world)),)
    if case.verdict.blind:
        return Situation.BLIND, (Wait("blind: the taint is held as it is"),)
    return Situation.CURED, ()


def under_way(world: World) -> bool:
    """Whether something goes on on a withdrawn node that ends by itself, and soon."""
    leaving = any(pod.terminating and not pod.stuck for pod in world.pods or ())
    runs = any(job.state == "active" for job in world.jobs or ())
    return leaving or runs or world.labels.get(STATE_LABEL) in ("repairing", "validating")


def said(now: Now) -> tuple[Wait, ...]:
    """What is waited for or left out, whatever is done."""
    undone = map(Wait, uncordoned(now.case.world, now.records.cordoned))
    others = (*drivers_taints(now.case.world), *_unwell(now.case.world), *undone)
    return (*now.waits, *_unconfirmed(now), *kept_closed(now.case, now.records), *recurs(now), *_left_out(now), *others)


def _unwell(world: World) -> Iterator[Wait]:
    """What the kubelet says of the devices of pods that are still there."""
    for pod in islice((one for one in world.pods or () if one.unwell and not one.finished), _MOST_UNWELL):
        yield Wait(f"pod {pod.key} has devices that its kubelet doesn't find healthy: {'; '.join(pod.unwell)}")


def recurs(now: Now) -> tuple[Wait, ...]:
    """What follows because it broke again, but for the hold."""
    return watched(now.case) if now.situation is Situation.IN_SERVICE else replaced(now.case, now.treatment)


def _left_out(now: Now) -> tuple[Wait, ...]:
    """Words of a person that the agent does not understand, and faults that it had no room to write down."""
    waits, unread, forgotten = [], now.case.world.unread, now.stored.left_out if now.stored else 0
    if unread:
        why = f"{unread} of its words are no fault's id, or beyond the 64 that are read"
        waits.append(Wait(f"annotation {DISMISS_ANNOTATION}: {why}"))
    if forgotten:
        why = f"{forgotten} faults found no room in it: a restart forgets them; the worst of each GPU is in it"
        waits.append(Wait(f"annotation {FAULTS_ANNOTATION}: {why}"))
    return tuple(waits)


def _unconfirmed(now: Now) -> tuple[Wait, ...]:
    """Fatal faults that withdraw nothing yet."""
    if now.situation is Situation.KEEP_OFF or not (only := [f for f in now.case.verdict.faults if f.aside]):
        return ()
    why = "seen only while the agent stood aside, and not confirmed since: it withdraws nothing"
    return tuple(Wait(f"{fault.finding.id}: {why}") for fault in only if fault.finding.severity is Severity.FATAL)
