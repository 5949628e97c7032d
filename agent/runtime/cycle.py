"""One round of the act loop: look, plan, do. The agent, its tests' lives and ``replay`` are driven by this alone.

A ``Cycle`` is what the loop carries from round to round, a value; ``turn`` makes the next one of it. Threads, pauses,
logs and counters are the driver's. A round reads the judge's word once. It ends at the first step that is refused.
Only a pod's step or an Event that is refused is its own trouble: the other pods and Events go on. On a look that is
over a second old no pod is asked and no repair begun, so that what a person writes is obeyed between two of them.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any

from agent.config.settings import Config, Mode
from agent.model.cluster_client import ClusterClient
from agent.model.describe import describe, kind
from agent.model.errors import CredentialsError, RefusedError, UnreachableError
from agent.model.fault import Reset, Severity, Unseen, Verdict
from agent.model.names import PERMIT_VALID_S
from agent.model.steps import Announce, AskCheckpoint, Delete, Diagnose, Evict, On, StartJob, Step, TakePermit, Wait
from agent.model.world import Claim, Local, World
from agent.remediation.budget import TRIES, unwatched
from agent.remediation.gate import to_check
from agent.remediation.idle_reset import resettable, wanted
from agent.remediation.other_controllers import released, upgrading
from agent.remediation.plan import Plan, plan, seen
from agent.remediation.records import Attempt, Records
from agent.remediation.stored import kept, restored
from agent.runtime.claim import claimed
from agent.runtime.exchange import Judged
from agent.runtime.patience import PUT_OFF, changes, gathers_s_of, goes_on, is_spare, put_off_s, spent
from agent.runtime.pod_gpus import Holders, with_gpus
from agent.runtime.said_anyway import said_anyway
from agent.runtime.watched import Watched, watched

_FIRST_WORDS_S = 15.0  # a source that hangs from the start must not keep the others' faults from being acted on
_LOOK_SERVES_S = 1.0  # so long pods are asked to leave on one look: a look is five reads or so
_UNHEARD = Wait("every source must be heard once before anything is concluded")

Clock = Callable[[], float]
Ask = Callable[[bool], Holders | None]
Trouble = CredentialsError | RefusedError | UnreachableError
OfAPod = AskCheckpoint | Evict | Delete


@dataclass(frozen=True, slots=True)
class Cycle:
    """What one life of the act loop knows between two rounds. Times are monotonic seconds, but for ``looked_at``."""

    config: Config
    began: float  # from when on this life looks with what the last one stored
    dry_run: bool = False  # look and plan, write nothing
    life: str = ""  # a name for this life among the agents of the node; empty: it is the only one
    claim: Claim | None = None  # with which it acts
    started: bool = False  # the Node was read once
    stored: str | None = None  # what it bore then
    world: World | None = None  # as last read
    looked_at: float = 0.0  # Unix seconds
    look_began: float = 0.0
    returned: Mapping[str, int] = field(default_factory=dict)  # workload → how often it came back before this life
    watched: Watched = field(default_factory=Watched)  # of the last repair
    resets: Mapping[str, Reset] = field(default_factory=dict)  # GPU UUID → our reset that is done, for the judge
    failed_resets: Mapping[str, Attempt] = field(default_factory=dict)  # by the faults' ids: they cured nothing
    keep_off: str = ""  # why no process of ours may hold a GPU now
    keep_off_from: float = 0.0  # when the look began that found so first
    asked: bool = False  # which pod holds which GPU is known, by an answer in this life
    opted_out_at: float = 0.0  # when a look last found the node opted out, or that nobody was there to see it
    spent_from: float = 0.0  # since when it waits for a permit; 0: it does not
    standing: bool = True  # the node bears a taint that takes a permit, or has one, or is new: assumed until a look

    @property
    def aside_s(self) -> float:
        """For how long the GPUs have been somebody else's by now; 0: they are not."""
        away = self.world is not None and bool(upgrading(self.world.labels))
        return max(self.look_began - self.keep_off_from, 1.0) if away else 0.0

    @property
    def aside(self) -> bool:
        """Whether they are."""
        return self.aside_s > 0


@dataclass(frozen=True, slots=True)
class Planned:
    """What a plan was made from, and the plan."""

    verdict: Verdict
    world: World
    local: Local
    plan: Plan

    @property
    def waits(self) -> tuple[Wait, ...]:
        return tuple(step for step in self.plan.steps if isinstance(step, Wait))

    @property
    def acts(self) -> tuple[Step, ...]:
        """What is to be written."""
        return tuple(step for step in self.plan.steps if not isinstance(step, Wait))


@dataclass(frozen=True, slots=True)
class Turn:
    """How a round went."""

    cycle: Cycle
    waits: tuple[Wait, ...] = ()
    done: tuple[Step, ...] = ()
    failed: tuple[str, ...] = ()  # "look", or the kinds of the steps that were refused
    again: bool = False  # something changed: another look may find more to do
    cut: bool = False  # the look was too old to ask the pods that are left
    overtaken: str = ""  # somebody else wrote first: so says the API server
    queued: bool = False  # nothing is left to do but to wait: for a permit, a person, another mode, for hours
    put_off_s: float = 0.0  # until the Node is told
    gathers_s: float = 0.0  # until the faults had their time to gather
    look_s: float = 0.0
    trouble: Trouble | None = None  # no answer, or one of trouble: the next round is put off
    planned: Planned | None = None  # not yet, before the first verdict


def turn(
    cycle: Cycle,
    judged: Judged,
    client: ClusterClient,
    ask: Ask,
    now: Clock = time.monotonic,
    wall: Clock = time.time,
    looked: Callable[[Cycle], object] = bool,
    decided: Callable[[Planned], object] = bool,
    did: Callable[[Step], object] = bool,
) -> Turn:
    """One round. ``ask`` tells which pod holds which GPU, and asks nobody while we keep off; ``now`` is monotonic.

    ``looked``, ``decided`` and ``did`` hear of the look, of the plan and of each step before anything follows from it:
    whatever tears the round, they know how far it came.
    """
    verdict, began = judged.verdict, now()
    wants = verdict is not None and _wants_permit(cycle, judged, verdict)
    try:
        world = client.look(cycle.standing or wants, wants)
    except (CredentialsError, RefusedError, UnreachableError) as error:
        return Turn(cycle, failed=("look",), trouble=error)
    look_s = now() - began
    cycle = _looked(replace(cycle, look_began=began, looked_at=wall()), world, verdict, now())
    claim = claimed(cycle.claim, cycle.life, restored(world.stored, 0.0), client, cycle.config.mode is Mode.OBSERVE)
    if cycle.claim not in (None, claim):  # it takes over from another, as a new life does
        client.succeeds()
        cycle = replace(cycle, began=now(), stored=world.stored, claim=claim)
        looked(cycle)
        return Turn(cycle, again=True)
    cycle = replace(cycle, claim=claim)
    looked(cycle)
    unheard = verdict is None or any(why.kind is Unseen.UNHEARD for why in verdict.blind.values())
    if verdict is None or (unheard and now() - cycle.began < _FIRST_WORDS_S):
        return Turn(cycle, (_UNHEARD,))
    if news := (world.dismissed - verdict.dismissed) & {key for fault in verdict.faults for key in fault.ids}:
        why = f"a person dismissed {', '.join(sorted(news))}: nothing is done before that is judged"
        return Turn(cycle, (Wait(why),))
    gathers_s = gathers_s_of(verdict, cycle.config, now())
    planned = _planned(cycle, world, judged, verdict, ask, now(), gathers_s <= 0)
    if world.aged and any(isinstance(s, TakePermit) and not (s.confirms or s.early) for s in planned.acts):
        client.renew()
        return Turn(cycle, planned.waits, again=True)
    decided(planned)
    early = [step for step in planned.acts if isinstance(step, TakePermit) and step.early and not cycle.dry_run]
    takes = any(isinstance(step, TakePermit) for step in planned.acts)  # whatever becomes of what it is taken for
    spent_from = (cycle.spent_from or now()) if spent(planned.waits) and not cycle.standing else 0.0
    asked = cycle.asked or planned.local.holders is not None
    standing, cycle = cycle.standing, replace(cycle, world=planned.world, spent_from=spent_from, asked=asked)
    looked(cycle := replace(cycle, standing=standing or takes))
    so_far = Turn(cycle, planned.waits, look_s=look_s, gathers_s=gathers_s, planned=planned)
    for step in early:
        one = _done(so_far, replace(planned, plan=Plan((step,))), client, now, did)
        if not one.overtaken or [step] == early[TRIES - 1 :]:
            return replace(one, waits=one.waits[len(so_far.waits) :], again=one.again or bool(one.done))
    if early:  # another was quicker at each, and the budget is spent
        looked(cycle := replace(cycle, standing=standing))
        rest, so_far = tuple(s for s in planned.plan.steps if s not in early), replace(so_far, cycle=cycle)
        planned = replace(planned, plan=replace(planned.plan, steps=rest))
    if spent_from and (later_s := put_off_s(planned.world, planned.acts, now() - spent_from)):
        return replace(so_far, waits=(*planned.waits, PUT_OFF), put_off_s=later_s)
    if cycle.dry_run:
        return replace(so_far, waits=(*(Wait(f"dry run: would {describe(s)}") for s in planned.acts), *planned.waits))
    ended = _done(so_far, planned, client, now, did)
    on = {wait.on for wait in planned.waits}
    waits_for = wants or verdict.fatal or On.STOPPED in on or (planned.waits and resettable(verdict.faults))
    rests = On.PROBATION in on or not goes_on(planned.world, planned.acts)
    queued = rests if cycle.standing else bool(waits_for or On.PROBATION in on)
    return replace(ended, queued=queued and not (ended.again or ended.cut or ended.failed))


def _wants_permit(cycle: Cycle, judged: Judged, verdict: Verdict) -> bool:
    config, held = cycle.config, cycle.world is not None and cycle.world.withdrawn  # that may have to give way
    least = Severity.DEGRADED if config.policy.degraded_effect == "NoSchedule" else Severity.FATAL
    bad = any(fault.finding.severity >= least and not fault.aside for fault in verdict.faults)
    idle = any(not judged.clients.get(fault.uuid) for fault in wanted(verdict, config, cycle.failed_resets))
    return (bad or idle or held) and config.mode is not Mode.OBSERVE


def _looked(cycle: Cycle, world: World, verdict: Verdict | None, now: float) -> Cycle:
    """With what the Node's labels and our own records on it say, to the sources and to the judge."""
    config, records = cycle.config, kept(world.stored)
    before = records.drain.returns if records.drain else {}  # what the agent's last life counted in this drain
    returned = cycle.returned if cycle.started and records.drain else before
    acts = config.mode is Mode.EVICT and not cycle.dry_run
    heard = None if now - cycle.began >= config.repair.prove_s else verdict.heard if verdict else frozenset[str]()
    keep_off = released(world.labels, records, heard, cycle.asked) if acts else upgrading(world.labels)
    # A hidden permit can't be given back: nothing of it is done here, and who needs one is told of it.
    holds = any(p.holder == world.holder and not p.hidden for p in world.permits or ())
    seen = watched(cycle.watched, records, world, cycle.look_began, now, cycle.looked_at, cycle.aside)
    cycle = replace(
        cycle,
        world=world,
        returned=returned,
        watched=seen,
        resets=dict.fromkeys(records.attempts[-1].gpus, seen.reset) if seen.reset else {},
        failed_resets=records.idle.failed_resets,
        opted_out_at=now if not world.managed or (not cycle.started and unwatched(world)) else cycle.opted_out_at,
        keep_off=keep_off,
        keep_off_from=cycle.keep_off_from if keep_off and cycle.keep_off else cycle.look_began,
        standing=world.withdrawn or holds or to_check(world, config),
    )
    # From now on it looks with what was stored; the time before counts for no proof.
    return cycle if cycle.started else replace(cycle, started=True, stored=world.stored, began=now)


def _planned(
    cycle: Cycle, world: World, judged: Judged, verdict: Verdict, ask: Ask, now: float, gathered: bool
) -> Planned:
    if verdict.fatal:
        world = replace(world, returns=dict(Counter(cycle.returned) + Counter(world.returns)))
    leave = verdict.fatal and any(not pod.finished for pod in world.pods or ())
    idle = world.pods is not None and wanted(verdict, cycle.config, cycle.failed_resets)
    holders = ask(bool(cycle.keep_off)) if leave or idle else None  # else it decides nothing
    world = with_gpus(world, holders, judged.clients, verdict.cards)
    closed = bool(cycle.keep_off) and judged.released is not None and judged.released >= cycle.keep_off_from
    up_s, stage_s = int(now - max(cycle.began, cycle.watched.sees_from)), int(now - cycle.watched.since)
    before = kept(cycle.stored) if now - cycle.began < PERMIT_VALID_S else Records()
    drain, clients, aside_s, out_at = before.drain, judged.clients, int(cycle.aside_s), int(cycle.opted_out_at)
    reserved, drains, under = tuple(before.reserved), drain is not None, drain.permit if drain else None
    claim = None if cycle.dry_run else cycle.claim
    local = Local(gathered, up_s, stage_s, closed, clients, holders, reserved, drains, under, out_at, aside_s, claim)
    return Planned(verdict, world, local, plan(verdict, world, cycle.config, local))


def _done(so_far: Turn, planned: Planned, client: ClusterClient, now: Clock, did: Callable[[Step], object]) -> Turn:
    """Do each step in order, as the module says."""
    world, until = planned.world, so_far.cycle.look_began + _LOOK_SERVES_S
    done, failed = list[Step](), list[str]()
    waits, again, left, begun = so_far.waits, False, set[str](), False

    def ended(**more: Any) -> Turn:
        cut = bool(left.difference(world.refused))  # whom somebody refused before is asked again in a while
        facts = {"done": tuple(done), "failed": tuple(failed), "waits": waits, "again": again, "cut": cut}
        return replace(so_far, **{**facts, **more})

    for step in planned.acts:
        if isinstance(step, OfAPod | StartJob | Diagnose) and (left or (begun and now() > until)):
            left.add(step.pod.key if isinstance(step, OfAPod) else step.name)
            continue
        if isinstance(step, Announce) and until == float("-inf"):
            continue  # it is told once somebody answers
        begun = True
        try:
            accepted = client.do(step)
        except (CredentialsError, RefusedError, UnreachableError) as error:
            failed.append(kind(step))
            if isinstance(error, RefusedError) and error.status == HTTPStatus.CONFLICT:
                return ended(again=True, overtaken=str(error))  # look again
            if isinstance(step, OfAPod) and not isinstance(error, CredentialsError):
                if step.pod.key not in world.refused:  # else the plan has named it
                    waits = (*waits, Wait(f"could not {describe(step)}: {error}", On.EVICTION))
                if isinstance(error, UnreachableError):
                    until = float("-inf")  # the next look shows whether it is the server that doesn't answer
                continue
            sentence = f"could not {describe(step)}: {error}"
            if is_spare(step) and not isinstance(error, CredentialsError):
                waits = (*waits, Wait(sentence, On.REFUSED)) if failed.count(kind(step)) == 1 else waits
                until = float("-inf") if isinstance(error, UnreachableError) else until
                continue
            wrong = seen(planned.verdict, world, so_far.cycle.config, planned.local)
            done += said_anyway(error, wrong, (*done, step), client, did)
            if not isinstance(error, RefusedError):
                silent = isinstance(error, UnreachableError)  # to this, maybe: a webhook that hangs answers to no other
                return ended(trouble=UnreachableError(sentence) if silent else error)
            if error.passes:  # the server's trouble, and not the step's
                return ended(trouble=RefusedError(error.status, sentence, wait_s=error.wait_s))
            on = On.OTHER if error.status == HTTPStatus.NOT_FOUND else On.REFUSED  # what is missing may yet come
            return ended(waits=(*waits, Wait(sentence, on)))
        if not accepted:
            continue
        done.append(step)
        did(step)
        again = again or changes(step, waits=bool(so_far.cycle.spent_from))
    return ended()
