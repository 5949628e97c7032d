"""What to do next about a verdict. Pure and level-triggered: it looks at the world and names the next safe steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from agent.config.settings import Config, Mode
from agent.model.errors import MalformedError, NewerError
from agent.model.fault import Fault, Severity, Verdict
from agent.model.names import DEGRADED, ERROR_LABEL, HARD_TAINT, OUT_LABEL, REPLACEMENT, STATE_LABEL, UNHEALTHY
from agent.model.ownership import own_taint
from agent.model.remedy import Remedy
from agent.model.steps import On, Report, Retaint, Step, TakeSlot, Wait
from agent.model.world import Condition, Local, SlotKind, Taint, World
from agent.remediation.budget import free_slot, given, needed, spent
from agent.remediation.case import Case, Treatment
from agent.remediation.drain import drain, leaving
from agent.remediation.events import announcements, camel, plain
from agent.remediation.idle_reset import chosen, failed
from agent.remediation.ladder import effective
from agent.remediation.other_controllers import another, out_by_others, upgrading
from agent.remediation.presets import accelerated, spoken_for
from agent.remediation.records import Attempt, Records, Stage
from agent.remediation.repair import operand_labels, repair, running, settled
from agent.remediation.stored import Stored, dump, load
from agent.remediation.taints import LEFT_FREE, aimed_taints, confirmed, kept_soft, permitted
from agent.remediation.validation import validate

_POSITION_EVERY_S = 60.0  # how often the kernel position alone is worth a write
_UNEXPLAINED = (
    f"the node bears {HARD_TAINT}, and no annotation gpu-health-agent/faults says what for: "
    "a person must remove the taint"
)
_BY_HAND = "mode taint: no pod is moved and nothing is repaired; the node returns once its cure is proved"
_PENDING = "for five minutes the node and its permit stay as they are: what was asked for in vain may still arrive"


@dataclass(frozen=True, slots=True)
class _Aim:
    """What the Node should say."""

    taints: tuple[Taint, ...]
    labels: dict[str, str | None]
    conditions: tuple[Condition, ...]
    stored: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do next, and what it is for."""

    steps: tuple[Step, ...]  # in order; one that fails ends the round
    treatment: Treatment | None = None


def plan(verdict: Verdict, world: World, config: Config, local: Local) -> Plan:
    """The next steps."""
    if not world.managed:
        why = "the node's label gpu-health-agent/managed=false opts it out: nothing is written to it"
        return Plan((Wait(why, On.STOPPED),))
    if why := upgrading(world.labels):
        return Plan((Wait(f"{why}: nothing is judged or done"),))
    try:
        stored = load(world.stored, 0.0) if world.stored is not None else None
    except NewerError as error:
        why = f"annotation gpu-health-agent/faults: {error}; it is only reported"
        return Plan((*_bad_news(verdict, world), Wait(why, On.STOPPED)))
    except MalformedError as error:
        why = f"annotation gpu-health-agent/faults: {error}; remove it to let the agent act again"
        return Plan((Wait(why, On.STOPPED),))
    tainted = any(taint.key == HARD_TAINT for taint in world.taints)
    if tainted and stored is None and not verdict.withdraw:
        return Plan((*_bad_news(verdict, world), Wait(_UNEXPLAINED, On.STOPPED)))
    old = records = stored.records if stored else Records()
    case = Case(verdict, world, config, local)
    treatment, records, waits = chosen(case, records)
    idle = records.idle
    job = running(world) if tainted and not treatment else ""
    stands = treatment is not None or (tainted and bool(verdict.blind))
    withdraw = stands or bool(job)
    moves: tuple[Step, ...] = ()
    repairing: tuple[Step, ...] = ()
    if treatment:
        records = replace(records, validation=None)  # it began too early, and comes again after the cure
        if config.mode is Mode.EVICT:
            treatment = effective(treatment, records, config.repair)
    if tainted and not stands and config.mode is Mode.EVICT and (config.repair.check or config.repair.diagnose):
        may = bool(not world.paused and world.held(SlotKind.WITHDRAWN) and not job)
        ended = stored.faults if stored else ()
        records, repairing = validate(case, records, ended, may)
        if job:  # of a repair, and what that paused stays so until it has ended
            records = replace(records, paused=old.paused)
    elif not withdraw:
        records = Records()
    elif not treatment:
        records = settled(world, records)
    elif config.mode is not Mode.EVICT or world.paused:
        repairing = (Wait(_BY_HAND),) if config.mode is Mode.TAINT and tainted else ()
        records = replace(records, drain=None)  # a deadline doesn't run while nobody may be asked
    elif tainted and world.held(SlotKind.WITHDRAWN) and not another(world):
        if not treatment.idle:
            records, moves = drain(case, treatment, records)
        records, repairing = repair(case, treatment, records, _drained(treatment, world))
        replacing = records.live is not None and records.live.remedy is Remedy.REPLACE_NODE
        if replacing and (why := spoken_for(config.presets, world.conditions)):
            repairing = (*repairing, Wait(why, On.REPAIR))
    records = replace(records, idle=idle)
    aim = _aim(case, treatment, _stored(verdict, world, stored, records), old, records)
    if why := another(world):
        steps: tuple[Step, ...] = (*_report(world, aim), Wait(f"{why}: it is only reported on"))
    elif treatment and config.mode is not Mode.OBSERVE:
        steps = _withdraw(treatment, world, config, aim, tainted, (*moves, *repairing))
    elif withdraw:
        why = "mode observe: the node would be withdrawn, and is only reported"
        if not treatment:
            why = (
                f"Job {job} runs: the node stays withdrawn until it has ended"
                if job
                else ("blind: the taint is held as it is")
            )
        steps = (*_report(world, aim), Wait(why), *repairing)
    elif repairing:
        steps = (*confirmed(world), *_report(world, aim), *repairing)
    else:
        steps = (*_return(world, config, aim), *kept_soft(aim.taints, config))
    return Plan((*steps, *waits, *announcements(verdict, world)), treatment)


def _bad_news(verdict: Verdict, world: World) -> tuple[Step, ...]:
    """What stands, and nothing about what doesn't: a fault that we can't read may still stand."""
    bad = tuple(c for c in _conditions(verdict, world, {}) if c.status == "True" and world.conditions.get(c.type) != c)
    error = {ERROR_LABEL: "true"} if verdict.fatal and world.labels.get(ERROR_LABEL) != "true" else {}
    return (Report(bad, error),) if bad or error else ()


def _drained(treatment: Treatment, world: World) -> bool:
    return world.pods is not None and not leaving(world.pods, treatment)


def _withdraw(
    treatment: Treatment, world: World, config: Config, aim: _Aim, tainted: bool, moves: tuple[Step, ...]
) -> tuple[Step, ...]:
    if world.paused:
        why = f"paused: {world.paused}; nothing is withdrawn, evicted or repaired"
        return (*_report(world, aim), Wait(why, On.STOPPED))
    steps: list[Step] = [*confirmed(world)]
    for kind in needed(world, config.budget):
        slot = free_slot(world, kind, config.budget, LEFT_FREE if treatment.idle else 0)
        if slot is None:
            return (*_report(world, aim), Wait(spent(world, kind, config.budget), On.PERMIT))
        steps.append(TakeSlot(kind, slot))
    if tainted:
        steps += given(world, SlotKind.HOURLY)
    retaint = _retaint(world, aim)
    steps += [*retaint, *_report(world, aim, told=bool(retaint))]
    return (*steps, *moves)


def _return(world: World, config: Config, aim: _Aim) -> tuple[Step, ...]:
    """Taint first, permit last: between the two a crash costs a slot for a moment, never the budget. Nothing of either
    while an eviction, a Job or a taint may still arrive: it would meet a node in service.

    But first of all what this withdrawal used of the hour: another one must not find it in our hands.
    """
    if any(taint.withdraws for taint in aim.taints):  # degraded, and as good as withdrawn
        back = given(world, SlotKind.DRAINING)
        return (*permitted(world, config.budget), *_retaint(world, aim), *_report(world, aim), *back)
    used = given(world, SlotKind.HOURLY)
    if any(slot.pending for slot in world.slots or ()):
        return (*(used if world.withdrawn else ()), *_report(world, aim), Wait(_PENDING))
    back = given(world, SlotKind.DRAINING, SlotKind.WITHDRAWN)
    return (*used, *_retaint(world, aim), *_report(world, aim), *back)


def _aim(case: Case, treatment: Treatment | None, stored: str, old: Records, records: Records) -> _Aim:
    verdict, world, config = case.verdict, case.world, case.config
    labels: dict[str, str | None] = {
        STATE_LABEL: _state(case, treatment, records),
        ERROR_LABEL: "true" if verdict.fatal else None,
        OUT_LABEL: "true" if out_by_others(world.taints, config.budget.others_taints) else None,
        **operand_labels(world, config.repair, old, records),
    }
    conditions = (*_conditions(verdict, world, records.idle.tried), *_replacement(world, config, records))
    return _Aim(aimed_taints(case, treatment), labels, conditions, stored)


def _state(case: Case, treatment: Treatment | None, records: Records) -> str:
    world = case.world
    if treatment:
        tainted = any(t.key == HARD_TAINT for t in world.taints)
        if case.config.mode is not Mode.EVICT or not tainted or world.pods is None:
            return "degraded" if treatment.idle else "unhealthy"
        if records.live:
            return "repairing"
        if records.attempts and records.attempts[-1].stage is Stage.DONE:
            return "validating"
        if treatment.idle:
            return "degraded"
        return "drained" if _drained(treatment, world) else "draining"
    if records.validation:  # one that failed is a person's matter
        return "validating" if records.validation.stage.live else "unhealthy"
    if records.live:
        return "repairing"
    return str(case.verdict.status)


def _replacement(world: World, config: Config, records: Records) -> tuple[Condition, ...]:
    """An act, not a report: another controller replaces the node on it. A node that never had it doesn't get it.

    So it is asked for only while we may act at all: a pause takes the word back before it is obeyed.
    """
    may = config.mode is Mode.EVICT and not world.paused and world.held(SlotKind.WITHDRAWN) is not None
    live = records.live
    asked = bool(may and live and live.remedy is Remedy.REPLACE_NODE and config.repair.request_replacement)
    wanted = accelerated(config.presets, world.conditions, asked)
    if asked:
        told = Condition(REPLACEMENT, "True", "RepairExhausted", "the node is drained, and to be replaced")
        return (told, *wanted)
    if REPLACEMENT in world.conditions:
        return (Condition(REPLACEMENT, "False", "NoReplacement", "no replacement is asked for"), *wanted)
    return wanted


def _conditions(verdict: Verdict, world: World, tried: Mapping[str, Attempt]) -> tuple[Condition, ...]:
    wanted = []
    for kind, severity in ((UNHEALTHY, Severity.FATAL), (DEGRADED, Severity.DEGRADED)):
        faults = [f for f in verdict.faults if f.finding.severity is severity]
        if faults:
            told = "; ".join(f"{f.finding.id}: {f.finding.message}{_tried(f, tried)}" for f in faults)
            wanted.append(Condition(kind, "True", camel(faults[0].finding.rule), plain(told)))
        elif not verdict.blind:
            wanted.append(Condition(kind, "False", "NoGpuFault", "no GPU fault of this severity stands"))
        elif kind in world.conditions:  # blind: keep what was said
            wanted.append(world.conditions[kind])
    return tuple(wanted)


def _tried(fault: Fault, tried: Mapping[str, Attempt]) -> str:
    why = failed(fault, tried)
    return f" (the reset of its idle GPU failed: {why})" if why else ""


def _stored(verdict: Verdict, world: World, old: Stored | None, records: Records) -> str:
    """The new annotation; the kernel position alone is carried along at most once a minute."""
    if old is not None and world.stored is not None:
        recent = verdict.kernel_seq == old.kernel_seq or 0 <= verdict.at - old.at < _POSITION_EVERY_S
        if recent and dump(verdict, old.kernel_seq, old.at, records) == world.stored:
            return world.stored
    return dump(verdict, verdict.kernel_seq, verdict.at, records)


def _retaint(world: World, aim: _Aim) -> tuple[Step, ...]:
    ours = {t for t in world.taints if own_taint(t)}
    if ours == set(aim.taints):
        return ()
    return (Retaint(aim.taints, aim.labels, aim.stored),)


def _report(world: World, aim: _Aim, told: bool = False) -> tuple[Step, ...]:
    """One write for what differs; ``told``: labels and stored state travel with the taint already."""
    conditions = tuple(c for c in aim.conditions if world.conditions.get(c.type) != c)
    labels = {} if told else {k: v for k, v in aim.labels.items() if world.labels.get(k) != v}
    stored = None if told or world.stored == aim.stored else aim.stored
    return (Report(conditions, labels, stored),) if conditions or labels or stored else ()
