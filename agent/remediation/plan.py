"""What to do next about a verdict. Pure and level-triggered: it looks at the world and names the next safe steps.

The agent may be killed after any write, an answer may be lost, and others write to the same Node, pods and Leases at
any time. So a plan is made anew from each look, its steps are done in order, and one that fails ends the round, but for
what is said of the node. Only a pod's step or an Event that fails is its own trouble. The order alone keeps these true
at every moment, whatever comes between:

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
from agent.model.remedy import Remedy
from agent.model.steps import On, Report, Step, TakePermit, Wait
from agent.model.world import Local, PermitKind, World
from agent.remediation.aim import aim
from agent.remediation.budget import beyond, free_permit, given, hidden, needed, spent, taken_early
from agent.remediation.case import Case, Outcome, Treatment
from agent.remediation.conditions import posts, reported
from agent.remediation.drain import ceased, drain, drained, quieted
from agent.remediation.events import announcements
from agent.remediation.fence import fencing, lifted, rehearsed
from agent.remediation.gate import checked as gate
from agent.remediation.noting import unread
from agent.remediation.presets import spoken_for
from agent.remediation.records import Records
from agent.remediation.recurrence import held
from agent.remediation.repair import awaited, repair, running, settled, yet_to_come
from agent.remediation.situation import Now, Situation, said, situation
from agent.remediation.taints import LEFT_FREE, confirmed, in_vain, kept_soft, permitted
from agent.remediation.told import acts
from agent.remediation.validation import validate

_PENDING = "for five minutes the node {}: the API server may still carry out a request that failed"

# Where we know too little to say more, or another speaks for the node.
_LITTLE_SAID = (
    Situation.ANOTHER_AGENT,
    Situation.OPTED_OUT,
    Situation.MALFORMED,
    Situation.NEWER,
    Situation.UNEXPLAINED,
)

Steps = tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do next, and what it is for."""

    steps: Steps  # one that fails ends the round
    treatment: Treatment | None = None


def plan(verdict: Verdict, world: World, config: Config, local: Local) -> Plan:
    """The next steps, in order."""
    now, back = _now(verdict, world, config, local)
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
            steps = (*aim(now, _kept(now)[0]).report(), *now.stands)
        case Situation.UNLISTED | Situation.OBSERVED | Situation.PAUSED | Situation.HELD | Situation.BLIND:
            records, checking = _kept(now)
            tries = now.treatment if now.situation is Situation.OBSERVED else None
            tried = rehearsed(now.case, tries) if tries else ()
            steps = (*aim(now, records).report(), *tried, *now.stands, *checking)
        case Situation.TO_WITHDRAW | Situation.BY_HAND:
            steps = _withdrawn(now, now.records, now.stands)
        case Situation.WITHDRAWN:
            steps = _withdrawn(now, *_treated(now))
        case Situation.CURED:
            records, checking = _kept(now)
            stays = (
                *confirmed(world, config.budget),
                *aim(now, records).report(),
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


def _now(verdict: Verdict, world: World, config: Config, local: Local) -> tuple[Now, Steps]:
    """The situation, and what is given back in it before all else."""
    now = situation(Case(verdict, world, config, local))
    back: Steps = () if now.situation is Situation.WITHDRAWN else ceased(now.case, now.records)
    return (replace(now, records=quieted(now.case, now.records, back)) if back else now), back


def seen(verdict: Verdict, world: World, config: Config, local: Local) -> Steps:
    """What is said of the node though a step before its report failed: what was seen, and no word on which others act.

    That needs a permit that was just confirmed.
    """
    now, _ = _now(verdict, world, config, local)
    if now.situation in _LITTLE_SAID:
        return ()
    told = announcements(verdict, world)
    if now.situation is Situation.TO_WITHDRAW and not now.records.live:  # nobody is asked for another node yet
        return (*aim(now, now.records).report(), *told)
    said_now = reported(verdict, world, now.records.idle.failed_resets)
    conditions = tuple(c for c in said_now if world.conditions.get(c.type) != c)
    return (*((Report(conditions, {}),) if conditions else ()), *told)


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
    world, budget, aimed = now.case.world, now.case.config.budget, aim(now, records)
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
    aimed = aim(now, now.records if arrives else replace(records, drain=None))
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


def _bad_news(verdict: Verdict, world: World) -> Steps:
    """What stands, and nothing about what doesn't: a fault that we can't read may still stand."""
    bad = tuple(c for c in reported(verdict, world, {}) if c.status == "True" and world.conditions.get(c.type) != c)
    # What another wrote there stays theirs.
    true = ((ERROR_LABEL, bool(verdict.fatal)), (WITHDRAWN_LABEL, world.withdrawn))
    labels = {label: "true" for label, stands in true if stands and label not in world.labels}
    return (Report(bad, labels),) if bad or labels else ()


def _only_reported(now: Now) -> Steps:
    """While the GPUs are somebody else's: what is seen, and no word on which others act."""
    aimed, tainted = aim(now, now.records), now.case.world.tainted
    ours = {OUT_LABEL, ERROR_LABEL, *ASKING_LABELS} | (set() if tainted else {STATE_LABEL})
    return replace(aimed, labels={key: value for key, value in aimed.labels.items() if key in ours}).report()
