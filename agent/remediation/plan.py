"""What to do next about a verdict. Pure and level-triggered: it looks at the world and names the next safe steps.

The agent may be killed after any write, an answer may be lost, and others write to the same Node, pods and Leases at
any time. So a plan is made anew from each look, its steps are done in order, and one that fails ends the round. Only a
pod's step or an Event that fails is its own trouble. The order alone keeps these true at every moment, whatever comes
between:

- The permit before the hard taint: a node keeps new pods away only while it holds its place in the budget.
- Reserve, then act: a repair or a check is written to the Node, under the name of its Job, before that is made. Whoever
  dies in between finds it again, and one incident is repaired once.
- The taint goes before the permit is given back: between the two a crash costs a place for a moment, never the budget.
- Fences stand only beside the hard taint: it comes before the first of them, and goes after the last.
- Nothing is given back while something that this life of the agent or an earlier one asked for in vain may still
  arrive: an eviction, a Job or a taint would meet a node in service.
- The draining permit goes back wherever nobody is evicted: others wait for it.
- Nothing of others is undone: our own taints, labels and conditions change, and theirs stay as they are.
- A pause and a keep-off take a request for a replacement back: it is an act that another controller obeys, and no
  report.
- Every standing still is a Wait: whatever doesn't go on says what it waits for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import assert_never

from agent.config.settings import Config, Mode
from agent.model.fault import Verdict
from agent.model.names import ERROR_LABEL, OUT_LABEL, STATE_LABEL, WITHDRAWN_LABEL
from agent.model.neighbours import ASKING_LABELS
from agent.model.ownership import own_taint
from agent.model.remedy import Remedy
from agent.model.steps import On, Report, Retaint, Step, TakePermit, Wait
from agent.model.world import Condition, Local, PermitKind, Taint, World
from agent.remediation.budget import beyond, free_permit, given, hidden, needed, spent, taken_early
from agent.remediation.case import Case, Outcome, Treatment
from agent.remediation.conditions import posts, replacement, reported
from agent.remediation.drain import ceased, drain, drained, quieted
from agent.remediation.events import announcements
from agent.remediation.fence import fencing, lifted, rehearsed
from agent.remediation.gate import checked as gate
from agent.remediation.noting import unread, written
from agent.remediation.other_controllers import out_by_others
from agent.remediation.presets import cordon, error_label, spoken_for
from agent.remediation.records import Records, Stage
from agent.remediation.recurrence import held
from agent.remediation.repair import awaited, operand_labels, repair, running, settled, yet_to_come
from agent.remediation.situation import Now, Situation, said, situation
from agent.remediation.stored import dump
from agent.remediation.taints import LEFT_FREE, aimed_taints, confirmed, in_vain, kept_soft, permitted, withdrawn_label
from agent.remediation.told import acts
from agent.remediation.validation import validate

_POSITION_EVERY_S = 60.0  # how often the kernel position alone is worth a write
_PENDING = "for five minutes the node {}: the API server may still carry out a request that failed"

Steps = tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class _Aim:
    """What the Node should say."""

    now: Now
    records: Records
    taints: tuple[Taint, ...]
    labels: dict[str, str | None]
    conditions: tuple[Condition, ...]
    stored: str
    cordon: str | None

    def retaint(self) -> Steps:
        """Our taints, and labels, stored state and ledger with them in one write."""
        ours = {taint for taint in self.now.case.world.taints if own_taint(taint)}
        if ours == {*self.taints} and self.cordon is None:
            return ()
        labels, history = {**self.labels, **withdrawn_label(self.taints)}, written(self.now, self.records, self.taints)
        return (Retaint(self.taints, labels, self.stored, history, self.cordon),)

    def report(self, with_taint: bool = False) -> Steps:
        """One write for what differs; ``with_taint``: labels, stored state and ledger travel with the taint already."""
        world = self.now.case.world
        conditions = tuple(c for c in self.conditions if world.conditions.get(c.type) != c)
        wanted = {} if with_taint else {**self.labels, **withdrawn_label(world.taints)}
        labels = {k: v for k, v in wanted.items() if world.labels.get(k) != v}
        stored = None if with_taint or world.stored == self.stored else self.stored
        history = None if with_taint else written(self.now, self.records, world.taints)
        return (Report(conditions, labels, stored, history),) if conditions or labels or stored or history else ()


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do next, and what it is for."""

    steps: Steps  # one that fails ends the round
    treatment: Treatment | None = None


def plan(verdict: Verdict, world: World, config: Config, local: Local) -> Plan:
    """The next steps, in order."""
    now = situation(Case(verdict, world, config, local))
    back: Steps = () if now.situation is Situation.WITHDRAWN else ceased(now.case, now.records)
    now = replace(now, records=quieted(now.case, now.records, back)) if back else now
    match now.situation:
        case Situation.ANOTHER_AGENT:  # whose permits are of the same name
            return Plan(now.stands)
        case Situation.OPTED_OUT | Situation.MALFORMED:
            return Plan((*back, *now.stands))
        case Situation.NEWER | Situation.UNEXPLAINED:
            return Plan((*back, *_bad_news(verdict, world), *now.stands))
        case Situation.KEEP_OFF:
            steps = (*_only_reported(now), *now.stands)
        case Situation.ANOTHERS:
            steps = (*_aim(now, _kept(now)[0]).report(), *now.stands)
        case Situation.UNLISTED | Situation.OBSERVED | Situation.PAUSED | Situation.HELD | Situation.BLIND:
            records, checking = _kept(now)
            tries = now.treatment if now.situation is Situation.OBSERVED else None
            tried = rehearsed(now.case, tries) if tries else ()
            steps = (*_aim(now, records).report(), *tried, *now.stands, *checking)
        case Situation.TO_WITHDRAW | Situation.BY_HAND:
            steps = _withdrawn(now, now.records, now.stands)
        case Situation.WITHDRAWN:
            steps = _withdrawn(now, *_treated(now))
        case Situation.CURED:
            records, checking = _kept(now)
            stays = (
                *confirmed(world, config.budget),
                *_aim(now, records).report(),
                *(checking := checking or held(now.case)),
            )
            steps = stays if checking else _in_service(now, records)
        case Situation.IN_SERVICE:
            records, checking = gate(now.case, now.records)
            steps = (*_in_service(now, records), *checking)
        case _:
            assert_never(now.situation)
    waits: Steps = (*said(now), *unread(world), *hidden(world, config.budget))
    return Plan((*back, *steps, *posts(now), *waits, *announcements(verdict, world), *acts(now, steps)), now.treatment)


def _treated(now: Now) -> Outcome:
    """What is done on a withdrawn node: its pods leave, and then it is repaired."""
    case, treatment, records = now.case, now.treatment, now.records
    assert treatment  # noqa: S101 - no node is withdrawn without one
    moves: Steps = ceased(case, records)
    coming = yet_to_come(case, treatment, records)
    if coming and not treatment.idle:
        records, moves = drain(case, coming, records)
    records = quieted(case, records, moves)
    gone = drained(case.world, coming or treatment) or not coming
    records, repairing = repair(case, treatment, records, gone)
    if records.live is not None and records.live.remedy is Remedy.REPLACE_NODE:
        whys = spoken_for(case.config.presets, case.world, records.asked)
        repairing = (*repairing, *(Wait(why, On.REPAIR) for why in whys))
    return records, (*moves, *repairing)


def _withdrawn(now: Now, records: Records, moves: Steps) -> Steps:
    """Under its permits and with its taint, which come first wherever one is missing."""
    world, budget, aimed = now.case.world, now.case.config.budget, _aim(now, records)
    left_free = LEFT_FREE if now.treatment and now.treatment.idle else 0
    if vain := in_vain(world, budget, left_free):
        return (*aimed.report(), *vain)
    why = Wait(spent(world, PermitKind.WITHDRAWN, budget), On.PERMIT)
    if beyond(world, budget):
        return (*aimed.report(), *given(world, PermitKind.WITHDRAWN), why)
    if early := taken_early(world, budget, left_free):
        return (*early, *aimed.report(), why)
    steps = [*confirmed(world, budget)]
    for kind in needed(world, budget):
        permit = free_permit(world, kind, budget, left_free)
        if permit is None:
            return (*aimed.report(), Wait(spent(world, kind, budget), On.PERMIT))
        steps.append(TakePermit(kind, permit))
    used = given(world, PermitKind.HOURLY) if world.tainted else ()
    retaint, fences = aimed.retaint(), fencing(now.case, now.treatment) if now.treatment else ()
    return (*steps, *used, *retaint, *aimed.report(with_taint=bool(retaint)), *fences, *moves)


def _kept(now: Now) -> Outcome:
    """The records where nothing is done, and the check that keeps a node whose faults are gone from its return."""
    case, world, settings = now.case, now.case.world, now.case.config.repair
    if now.treatment:
        return now.records, ()
    blind, job = bool(case.verdict.blind), running(world)
    if world.tainted and not blind and case.config.mode is Mode.EVICT and (settings.check or settings.diagnose):
        may = bool(not (world.paused or world.unlisted or job) and world.held(PermitKind.WITHDRAWN))
        records, checking = validate(case, now.records, now.stored.faults if now.stored else (), may)
        # What a repair that runs has paused stays so until it has ended.
        records = replace(records, drain=now.records.drain)  # its evictions may still arrive
        return (replace(records, paused=now.records.paused) if job else records), checking
    kept = settled(case, now.records) if blind or job else Records(drain=now.records.drain)
    return kept if world.tainted else Records(), ()


def _in_service(now: Now, records: Records) -> Steps:
    """Taint first, permit last. Nothing of either while an eviction, a Job or a taint may still arrive.

    But first of all what this withdrawal used of the hour: another withdrawal must not find it held.
    """
    world, config, arrives = now.case.world, now.case.config, _may_arrive(now)
    aimed = _aim(now, now.records if arrives else replace(records, drain=None))
    soft = kept_soft(aimed.taints, config)
    if any(taint.withdraws for taint in aimed.taints):  # degraded, and as good as withdrawn
        if vain := in_vain(world, config.budget, LEFT_FREE):
            return (*aimed.report(), *vain)
        return (*permitted(world, config.budget), *lifted(world), *aimed.retaint(), *aimed.report(), *soft)
    used = given(world, PermitKind.HOURLY)
    if arrives:
        stay = "and its permit stay as they are" if world.held(PermitKind.WITHDRAWN) else "stays as it is"
        return (*(used if world.withdrawn else ()), *aimed.report(), Wait(_PENDING.format(stay)), *soft)
    return (*used, *lifted(world), *aimed.retaint(), *aimed.report(), *given(world, PermitKind.WITHDRAWN), *soft)


def _may_arrive(now: Now) -> bool:
    """Whether an eviction, a Job or a taint may still meet the node: asked for in vain, or by a life that just ended.

    What that life may have asked for last is told by what it held and wrote first: evictions by the draining permit,
    the taint by the withdrawn one on a node without a taint, a Job by its reservation. So a cured node whose drain was
    over when the agent was started anew doesn't wait: only its draining permit, which it gave back, tells that it was.
    """
    world, permits, under = now.case.world, now.case.world.permits or (), now.case.local.drained_under
    earlier = {permit.kind for permit in permits if permit.inherited}
    drained = (p for p in permits if p.kind is PermitKind.DRAINING and p.index == under)
    free = any(not p.holder and p.last == world.holder for p in drained)
    lost = now.case.local.drains and world.withdrawn and not (free and PermitKind.WITHDRAWN in earlier)
    may = lost or PermitKind.DRAINING in earlier or (PermitKind.WITHDRAWN in earlier and not world.withdrawn)
    return may or awaited(now.case) or world.pending


def _aim(now: Now, records: Records) -> _Aim:
    """With these records; what is known of idle GPUs outlives them."""
    case, verdict, world, config = now.case, now.case.verdict, now.case.world, now.case.config
    error, noted = error_label(case, now.records.labelled)
    if now.situation is Situation.KEEP_OFF and error.get(ERROR_LABEL) and not case.forgotten:
        error, noted = {}, False  # others act on it: an upgrade makes lines that look fatal
    asks = replacement(now, records)
    taints = aimed_taints(case, now.treatment, now.records)
    cordons, ours = cordon(config.presets, world, taints, now.records.cordoned)
    records = replace(records, idle=now.records.idle, labelled=noted, asked=asks.asked, cordoned=ours)
    labels: dict[str, str | None] = {
        STATE_LABEL: _state(now, records),
        **error,
        OUT_LABEL: "true" if out_by_others(world, config.budget.others_taints) else None,
        **operand_labels(world, config.repair, now.records, records),
        **asks.labels,
    }
    conditions = (*reported(verdict, world, records.idle.failed_resets), *asks.conditions)
    return _Aim(now, records, taints, labels, conditions, _stored(now, records), cordons)


def _bad_news(verdict: Verdict, world: World) -> Steps:
    """What stands, and nothing about what doesn't: a fault that we can't read may still stand."""
    bad = tuple(c for c in reported(verdict, world, {}) if c.status == "True" and world.conditions.get(c.type) != c)
    # What another wrote there stays theirs.
    true = ((ERROR_LABEL, bool(verdict.fatal)), (WITHDRAWN_LABEL, world.withdrawn))
    labels = {label: "true" for label, stands in true if stands and label not in world.labels}
    return (Report(bad, labels),) if bad or labels else ()


def _only_reported(now: Now) -> Steps:
    """While the GPUs are somebody else's: what is seen, and no word on which others act."""
    aimed, tainted = _aim(now, now.records), now.case.world.tainted
    ours = {OUT_LABEL, ERROR_LABEL, *ASKING_LABELS} | (set() if tainted else {STATE_LABEL})
    return replace(aimed, labels={key: value for key, value in aimed.labels.items() if key in ours}).report()


def _state(now: Now, records: Records) -> str:
    world, treatment = now.case.world, now.treatment
    if treatment:
        if now.case.config.mode is not Mode.EVICT or not world.tainted or world.pods is None:
            return "degraded" if treatment.idle else "unhealthy"
        if records.live:
            return "repairing"
        if not treatment.unproved or (records.attempts and records.attempts[-1].stage is Stage.DONE):
            return "validating"
        if treatment.idle:
            return "degraded"
        return "drained" if drained(world, treatment) else "draining"
    if records.validation:  # one that failed is a person's matter
        return "validating" if records.validation.stage.live else "unhealthy"
    if records.live:
        return "repairing"
    if now.situation is Situation.CURED and held(now.case):
        return "validating"
    return str(now.case.verdict.status)


def _stored(now: Now, records: Records) -> str:
    """The new annotation; the kernel position alone is carried along at most once a minute.

    Which life of the agent acts stands in it before anything is done, and is no reason to write it otherwise.
    """
    verdict, old, own = now.case.verdict, now.stored, now.case.local.claim
    if old is not None:
        recent = verdict.kernel_seq == old.kernel_seq or 0 <= verdict.at - old.at < _POSITION_EVERY_S
        writer = own if own and (now.case.world.withdrawn or now.situation is Situation.TO_WITHDRAW) else old.writer
        if recent and (same := dump(verdict, old.kernel_seq, old.at, records, writer)) == now.case.world.stored:
            return same
    return dump(verdict, verdict.kernel_seq, verdict.at, records, own or (old.writer if old else None))
