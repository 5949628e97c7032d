"""The gate of a new node: a startup taint that others set, and the agent takes off once all was seen well. Pure.

It is the one thing of others that the agent undoes. It never sets such a taint, and puts none back. Where that is asked
for, DCGM's diagnosis of all GPUs comes before; it is reserved on the Node like any check.
"""

from __future__ import annotations

from hashlib import sha256

from agent.config.settings import Config
from agent.model.fault import Status
from agent.model.ownership import GATE_TAINTS
from agent.model.steps import On, Wait
from agent.model.world import Taint, World
from agent.remediation.case import Case, Outcome
from agent.remediation.records import Kind, Records, Stage, Validation
from agent.remediation.validation import DISMISSED, diagnosis, failure


def standing(case: Case, records: Records) -> tuple[Taint, ...]:
    """The startup taints that stay as they are."""
    opens = case.config.gate.enabled and _well(case) and not checked(case, records)[1]
    return () if opens else _there(case.world)


def kept_closed(case: Case, records: Records) -> tuple[Wait, ...]:
    """Why a startup taint stays."""
    if not (there := standing(case, records)):
        return ()
    stays = f"the node's startup taint {', '.join(taint.key for taint in there)} stays"
    if not case.config.gate.enabled:
        return (Wait(f"{stays}: gate.enabled is off, so a person must remove it", On.STOPPED),)
    if _well(case):
        return (Wait(f"{stays} until DCGM's diagnosis of level {case.config.gate.diagnose} has passed"),)
    return (Wait(f"{stays} until every GPU was read, and nothing is wrong"),)


def to_check(world: World, config: Config) -> bool:
    """Whether it is a new node that is to be diagnosed."""
    return bool(config.gate.diagnose and _there(world))


def checked(case: Case, records: Records) -> Outcome:
    """The diagnosis before its removal, with the records of it; nothing where none is asked for, or it has passed."""
    world, level, before = case.world, case.config.gate.diagnose, records.validation
    if not (level and to_check(world, case.config)) or DISMISSED in world.dismissed:
        return Records(), ()
    check = before if before and before.kind is Kind.GATE else None
    if not _well(case):
        return Records(validation=check), ()
    if check is None:
        made = f"{world.uid} {case.verdict.at:.3f}"
        check = Validation(Kind.GATE, Kind.GATE + sha256(made.encode()).hexdigest()[:10], (), case.verdict.boot_id)
        return Records(validation=check), (Wait("the node is to be checked before it takes pods"),)
    if check.stage is Stage.FAILED:
        return Records(validation=check), failure(world, check)
    closed = any(taint.effect != "PreferNoSchedule" for taint in _there(world))
    may = closed and world.permits is not None and not world.paused  # of a pause only a close look knows
    after, steps = diagnosis(case, level, check, may)
    return Records(validation=after), steps


def _there(world: World) -> tuple[Taint, ...]:
    return tuple(taint for taint in world.taints if taint.key in GATE_TAINTS)


def _well(case: Case) -> bool:
    """Whether all was seen, and nothing is wrong but what is a notice."""
    return case.verdict.status is Status.HEALTHY and not case.verdict.blind
