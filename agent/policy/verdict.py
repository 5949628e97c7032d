"""Fold observations into a verdict: a fault is confirmed, held and cleared here and nowhere else. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from agent.config import Limits
from agent.model import Evidence, Fault, Finding, Observation, Remedy, Severity, Status, Verdict
from agent.policy.history import History, renew
from agent.policy.rules import RULES
from agent.policy.rules.silence import blind

_CURED_BY_REBOOT = (Remedy.NONE, Remedy.RESTART_WORKLOAD, Remedy.RESET_GPU, Remedy.REBOOT_NODE)


@dataclass(frozen=True, slots=True)
class Memory:
    """What the judge carries from round to round; all of it can be lost but the stored faults."""

    history: History = field(default_factory=History)
    faults: Mapping[str, Fault] = field(default_factory=dict)


def judge(
    memory: Memory,
    seen: Iterable[Observation],
    now: float,
    wall: float,
    limits: Limits,
    expected: tuple[str, ...],
) -> tuple[Memory, Verdict]:
    """One round: ``now`` is monotonic seconds and decides, ``wall`` is Unix seconds and is only told."""
    before = memory.history.now
    history = renew(memory.history, seen, now)
    elapsed_s = history.now - before if before else 0.0
    unseen = dict(blind(history, expected, limits.silent_s))
    found = _strongest(finding for rule in RULES for finding in rule(history, limits))
    faults: dict[str, Fault] = {}
    for key in {**memory.faults, **found}:
        fault = _age(memory.faults.get(key), found.get(key), history, elapsed_s, unseen, limits)
        if fault:
            faults[key] = fault
    return Memory(history, faults), _verdict(faults, unseen, history, wall)


def _strongest(findings: Iterable[Finding]) -> dict[str, Finding]:
    """One finding per fault id: the most severe, then the last."""
    found: dict[str, Finding] = {}
    for finding in findings:
        old = found.get(finding.id)
        if old is None or finding.severity >= old.severity:
            found[finding.id] = finding
    return found


def _age(
    old: Fault | None,
    finding: Finding | None,
    history: History,
    elapsed_s: float,
    unseen: Mapping[str, str],
    limits: Limits,
) -> Fault | None:
    if old and _another_card(old, history):
        old = None
    if finding and not (finding.holds_only and old is None):
        return _found(old, finding, history)
    if old is None or not old.confirmed:
        return None
    if old.finding.witness in unseen:
        return old  # absence proves nothing while we are blind
    if old.finding.clear_s is None:
        if not old.proved:
            return replace(old, absent_s=0.0, proved=_proved_cure(old, history))
        clear_s = limits.soak_s
    else:
        clear_s = old.finding.clear_s
    absent_s = old.absent_s + elapsed_s
    return None if absent_s >= clear_s else replace(old, absent_s=absent_s)


def _found(old: Fault | None, finding: Finding, history: History) -> Fault:
    if old is None:
        return Fault(
            finding,
            since=finding.evidence.at,
            began=finding.seen,
            last=finding.seen,
            uuid=history.uuid(finding.pci),
            boot_id=history.boots.get(finding.witness, history.boot_id),
            confirmed=finding.confirm_s <= 0,
            witnesses=(finding.evidence,),
        )
    fresh = finding.seen > old.last  # a reading that is judged again is no new evidence
    if old.confirmed and finding.severity < old.finding.severity:
        finding = old.finding  # a milder repeat never lowers a standing fault
    return replace(
        old,
        finding=finding,
        last=max(old.last, finding.seen),
        uuid=old.uuid or history.uuid(finding.pci),
        boot_id=history.boots.get(finding.witness) or old.boot_id,
        count=old.count + fresh,
        absent_s=0.0,
        proved=False,
        confirmed=old.confirmed or finding.seen - old.began >= finding.confirm_s,
        witnesses=_joined(old.witnesses, finding.evidence),
    )


def _joined(witnesses: tuple[Evidence, ...], new: Evidence) -> tuple[Evidence, ...]:
    """The first word of each source, so that one incident shows all who saw it."""
    return witnesses if any(w.source == new.source for w in witnesses) else (*witnesses, new)


def _another_card(fault: Fault, history: History) -> bool:
    uuid = history.uuid(fault.finding.pci)
    return bool(fault.uuid and uuid and fault.uuid != uuid)


def _proved_cure(fault: Fault, history: History) -> bool:
    """A latched fault is cured by a proved act, never by silence: a reboot, or a reset of this GPU."""
    pci, remedy = fault.finding.pci, fault.finding.remedy
    reading = history.readings.get(pci)
    if reading is None or reading.seen <= fault.last or pci in history.lost:
        return False  # the GPU must be there and answer again
    if history.number(pci, "recovery_action"):
        return False
    boot_id = history.boots.get("nvml", "")  # by the witness that reads the GPU well again, in that boot
    rebooted = bool(fault.boot_id and boot_id and fault.boot_id != boot_id)
    was_reset = history.epochs.get(pci, 0.0) > fault.last
    return (rebooted and remedy in _CURED_BY_REBOOT) or (was_reset and remedy is Remedy.RESET_GPU)


def _verdict(faults: Mapping[str, Fault], unseen: Mapping[str, str], history: History, wall: float) -> Verdict:
    confirmed = sorted(
        (f for f in faults.values() if f.confirmed),
        key=lambda f: (-f.finding.severity, -f.finding.remedy.rank, f.since, f.finding.id),
    )
    worst = confirmed[0].finding.severity if confirmed else Severity.NOTICE
    if worst is Severity.FATAL:
        status = Status.UNHEALTHY
    elif unseen:
        status = Status.UNKNOWN
    else:
        status = Status.DEGRADED if worst is Severity.DEGRADED else Status.HEALTHY
    acting = [f.finding.remedy for f in confirmed if f.finding.severity is worst and worst > Severity.NOTICE]
    return Verdict(
        at=wall,
        status=status,
        remedy=max(acting, key=lambda remedy: remedy.rank, default=Remedy.NONE),
        faults=tuple(confirmed),
        blind=tuple(f"{source}: {why}" for source, why in sorted(unseen.items())),
        boot_id=history.boot_id,
        kernel_seq=history.kernel_seq,
    )
