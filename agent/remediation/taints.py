"""Which taints of ours the Node should bear, and what that of a degraded one costs in its harder form. Pure.

Where no new pod at all is to come to a degraded node, it is withdrawn as far as the cluster is concerned: it takes a
permit, but never the last one, which is a fatal fault's.
"""

from __future__ import annotations

from collections.abc import Iterable

from agent.config.settings import Budget, Config, Mode
from agent.model.fault import Severity
from agent.model.names import HARD_TAINT, SOFT_TAINT, WITHDRAWN_LABEL
from agent.model.ownership import GATE_TAINTS, own_taint
from agent.model.steps import On, Step, TakePermit, Wait
from agent.model.world import PermitKind, Taint, World
from agent.remediation.budget import allowed, beyond, free_permit, given, lately, needed
from agent.remediation.case import Case, Treatment
from agent.remediation.fence import by_device
from agent.remediation.gate import standing
from agent.remediation.presets import beside_hard
from agent.remediation.records import Records
from agent.remediation.recurrence import watched

LEFT_FREE = 1  # for a fatal fault
LAST_PERMIT = "of the permits the last is left to a fatal fault"
_REFUSED_S = 600  # how long a node keeps a permit for a taint that is refused
_REFUSED = Wait(
    "our taint was refused for ten minutes: others that wait for a permit go first, then the agent asks again",
    On.STOPPED,
)
_SOFT = Taint(SOFT_TAINT, "", "PreferNoSchedule")
_FIRM = Taint(SOFT_TAINT, "", "NoSchedule")


def aimed_taints(case: Case, treatment: Treatment | None, records: Records) -> tuple[Taint, ...]:
    """With the startup taints that stay, as the ``records`` on the Node have it."""
    gate = standing(case, records)
    return (*(taint for taint in _aimed(case, treatment) if taint.key not in GATE_TAINTS), *gate)


def _aimed(case: Case, treatment: Treatment | None) -> tuple[Taint, ...]:
    """A hard one is set only once its permit is held; a blind agent leaves what stands."""
    verdict, world, config = case.verdict, case.world, case.config
    bad = any(f.finding.severity > Severity.NOTICE for f in verdict.faults)
    hard = any(taint.key == HARD_TAINT for taint in world.taints)
    if verdict.blind and not treatment and (hard or not bad):
        return tuple(taint for taint in world.taints if own_taint(taint))
    if config.mode is Mode.OBSERVE:
        return ()
    if not bad:
        return (_SOFT,) if watched(case) else ()
    if treatment and by_device(case, treatment):
        return (Taint(HARD_TAINT, treatment.remedy, "PreferNoSchedule"),)
    if treatment:
        return (Taint(HARD_TAINT, treatment.remedy, "NoSchedule"), *beside_hard(config.presets, world.taints))
    firm = any(f.finding.severity > Severity.NOTICE and not f.aside for f in verdict.faults)
    return (_FIRM if firm and config.policy.degraded_effect == _FIRM.effect and spare(world, config.budget) else _SOFT,)


def spare(world: World, budget: Budget) -> bool:
    """Whether a permit is held or free, and another one beside it."""
    if world.paused and not world.withdrawn:
        return False
    if held := world.held(PermitKind.WITHDRAWN):
        return not beyond(world, budget) and held.index < allowed(world, PermitKind.WITHDRAWN, budget) - LEFT_FREE
    return all(free_permit(world, kind, budget, LEFT_FREE) is not None for kind in needed(world, budget))


def effect_on(taints: Iterable[Taint]) -> str:
    """What our taint does on a degraded node, as it stands; empty without one."""
    ours = {taint.key: taint.effect for taint in taints}
    return ours.get(HARD_TAINT, ours.get(SOFT_TAINT, ""))


def confirmed(world: World, budget: Budget) -> tuple[Step, ...]:
    """Nothing is done on a permit that was not confirmed lately. The draining one is the drain's to confirm.

    One that was taken early is ours by its confirmation.
    """
    kept = [p for p in world.permits or () if p.stale and p.kind is not PermitKind.DRAINING]
    over = beyond(world, budget)
    return tuple(TakePermit(p.kind, p.index, confirms=not p.former) for p in kept if not (p.early and over))


def permitted(world: World, budget: Budget) -> tuple[Step, ...]:
    """What the harder form needs before it is written."""
    free = ((kind, free_permit(world, kind, budget, LEFT_FREE)) for kind in needed(world, budget))
    taken = tuple(TakePermit(kind, index) for kind, index in free if index is not None)
    used = given(world, PermitKind.HOURLY) if world.withdrawn else ()
    return (*confirmed(world, budget), *taken, *used)


def in_vain(world: World, budget: Budget, left_free: int) -> tuple[Step, ...]:
    """Where our taint was refused for so long that others have its permit first; empty where it is asked for."""
    if world.withdrawn or world.untainted_s < _REFUSED_S:
        return ()
    if held := world.held(PermitKind.WITHDRAWN):
        back = () if world.pending else given(world, PermitKind.HOURLY, PermitKind.WITHDRAWN)
        return (*back, _REFUSED) if held.had_s >= _REFUSED_S else ()
    permit = free_permit(world, PermitKind.WITHDRAWN, budget, left_free)
    return () if permit is None or not lately(world, PermitKind.WITHDRAWN, permit) else (_REFUSED,)


def kept_soft(taints: tuple[Taint, ...], config: Config) -> tuple[Wait, ...]:
    """Why the taint hasn't the effect that is wanted."""
    if _SOFT not in taints or config.policy.degraded_effect == _SOFT.effect:
        return ()
    return (Wait(f"the degraded node's taint stays soft: {LAST_PERMIT}"),)


def withdrawn_label(taints: Iterable[Taint]) -> dict[str, str | None]:
    """The label by which others find a node that keeps every new pod away through us, whatever became of its permit."""
    return {WITHDRAWN_LABEL: "true" if any(taint.withdraws for taint in taints) else None}
