"""Fold observations into a verdict: a fault is confirmed, held and cleared here and nowhere else. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from agent.config.limits import Limits
from agent.config.source_index import SECOND_WITNESS, SPARE
from agent.diagnosis import relapse
from agent.diagnosis.aside import only_aside
from agent.diagnosis.correlate import incidents, order, overruled
from agent.diagnosis.dismissal import dismissed, ends_when_cured, lasts, with_dismissal, without
from agent.diagnosis.history import History
from agent.diagnosis.lapses import Lapse, held_until, holds, lapses
from agent.diagnosis.linked import linked
from agent.diagnosis.overrides import settle
from agent.diagnosis.pre_start import doubted
from agent.diagnosis.proof import counted, outlived, proved, watched
from agent.diagnosis.rules import RULES
from agent.diagnosis.rules.kernel import ENDS
from agent.diagnosis.rules.presence import given_up
from agent.diagnosis.rules.silence import blind
from agent.diagnosis.seen import could_show, could_show_s, ended
from agent.diagnosis.update import updated
from agent.model.fault import Evidence, Fault, Finding, Reason, Reset, Severity, Status, Verdict
from agent.model.observation import Observation
from agent.model.remedy import Remedy
from agent.model.world import Offer


@dataclass(frozen=True, slots=True)
class Orders:
    """What the Node says to the judge: its labels, and the operator's word on single faults."""

    labels: Mapping[str, str] = field(default_factory=dict)
    workloads: Mapping[str, str] = field(default_factory=dict)  # pod UID → namespace/Kind/name
    dismissed: frozenset[str] = frozenset()  # fault ids in the annotation gpu-health-agent/dismiss
    resets: Mapping[str, Reset] = field(default_factory=dict)  # GPU UUID → our reset
    drill: str = ""  # the nonce of the drill that the Node bears, while it is valid
    offer: Offer = field(default_factory=Offer)  # what it says of its GPUs
    aside: bool = False  # the GPUs are somebody else's for now: a driver upgrade, a change of MIG


@dataclass(frozen=True, slots=True)
class Memory:
    """What the judge carries from round to round; all of it can be lost but what the Node stores."""

    history: History = field(default_factory=History)
    faults: Mapping[str, Fault] = field(default_factory=dict)
    onsets: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # when each GPU turned fatal, Unix seconds
    dismissed: frozenset[str] = frozenset()  # the operator's words that were obeyed
    obeyed: frozenset[str] = frozenset()  # of them those that an earlier life obeyed
    lapses: Mapping[str, Lapse] = field(default_factory=dict)  # what can't be seen, or couldn't lately


def judge(
    memory: Memory,
    seen: Iterable[Observation],
    now: float,
    wall: float,
    limits: Limits,
    expected: tuple[str, ...],
    orders: Orders | None = None,
) -> tuple[Memory, Verdict]:
    """One round: ``now`` is monotonic seconds and decides, ``wall`` is Unix seconds and only for people."""
    orders = orders or Orders()
    history = updated(memory.history, seen, now, orders.workloads)
    history = replace(history, expected=expected, offer=orders.offer)
    history, began_at = without(history, orders.dismissed), wall - (history.now - history.began)
    unseen = dict(blind(history, expected, limits.silent_s))
    settled_s = 5 * limits.silent_s
    lapsed, earlier = memory.lapses, replace(memory.history, now=history.now)
    # What came and went lapsed again, whether or not anybody asked before it was seen once more in this round.
    again = [(name, why) for name, why in blind(earlier, expected, limits.silent_s) if name in lapsed] if lapsed else []
    for known, reasons in ((earlier, again), (history, unseen.items())):
        # What only the second witness saw is held while it is silent; with a first one the node isn't unknown for that.
        told = {
            name: (why, ended(known, name, why, limits.silent_s))
            for name, why in reasons
            if name not in SPARE or expected == (SECOND_WITNESS,)
        }
        lapsed = lapses(lapsed, told, history.now, settled_s)
    findings = [finding for rule in RULES for finding in rule(history, limits)]
    history = history.without({finding.pci for finding in findings})
    wanted = [
        as_wanted
        for finding in findings
        if (as_wanted := settle(finding, history, limits, orders.labels))
        and not (finding.id in orders.dismissed and dismissed(finding, memory.obeyed, began_at))
        and as_wanted.drill in ("", orders.drill)
    ]
    found = _strongest(finding for finding in wanted if _renews(finding, memory.faults))
    over = {replace(f, rule=ENDS[f.rule]).id for f in wanted if f.rule in ENDS} - found.keys()
    released = (orders.dismissed - memory.dismissed) | over | given_up(history)
    # What a drill said is true as long as the Node bears it: it ends with it, however the drill ended.
    old = {
        key: fault
        for key, fault in memory.faults.items()
        if key not in released and fault.finding.drill in ("", orders.drill)
    }
    # A state that its last reading showed stood until this round, whether or not anybody asked meanwhile.
    if gone := old.keys() - found.keys():
        stale = replace(memory.history, fresh=())
        was = (finding for rule in RULES for finding in rule(stale, limits))
        gone -= {finding.id for finding in was if _renews(finding, memory.faults)}
    absent = {}
    for key in gone:
        since = held_until(memory.lapses, old[key], settled_s)
        absent[key] = could_show_s(old[key], memory.history, since, history.now, limits)
    faults: dict[str, Fault] = {}
    for key in {**old, **found}:
        if key in old and key not in found and holds(lapsed, old[key]):
            faults[key] = old[key]
            continue
        fault = _age(old.get(key), found.get(key), absent.get(key, 0.0), history, unseen, limits, orders.resets)
        if fault:
            faults[key] = fault
    for finding in wanted:  # several that say the same in one round are witnesses each
        if fault := faults.get(finding.id):
            faults[finding.id] = _also(fault, finding.evidence)
    faults = {key: doubted(fault, old.get(key), history, began_at) for key, fault in faults.items()}
    if orders.resets:
        faults = {key: outlived(fault, history, orders.resets) for key, fault in faults.items()}
    faults = overruled(faults, history)
    faults = {key: only_aside(fault, old.get(key), orders.aside, history) for key, fault in faults.items()}
    onsets = {pci: times for pci, times in memory.onsets.items() if relapse.fault_id(pci) not in released}
    onsets = relapse.counted(onsets, old, faults, wall, limits)
    for key, finding in relapse.findings(onsets, history.now, limits).items():
        if settled := settle(finding, history, limits, orders.labels):
            faults.setdefault(key, _found(None, settled, history))
    memory = Memory(history, faults, onsets, orders.dismissed, memory.obeyed, lapsed)
    return memory, _verdict(memory, wall, frozenset(orders.resets))


def _renews(finding: Finding, faults: Mapping[str, Fault]) -> bool:
    """Whether it keeps its fault as it stands. A milder word of DCGM's own does not: the graver one runs out.

    DCGM repeats an incident for ever, and it means less once NVML reads the same value.
    """
    old = faults.get(finding.id)
    milder = old is not None and old.confirmed and finding.severity < old.finding.severity
    return not (milder and finding.rule.startswith(f"{SECOND_WITNESS}-"))


def _strongest(findings: Iterable[Finding]) -> dict[str, Finding]:
    """One finding per fault id: the most severe, then the last; one that begins a fault before one that holds it."""
    found: dict[str, Finding] = {}
    for finding in findings:
        old = found.get(finding.id)
        if old is None or (not finding.holds_only, finding.severity) >= (not old.holds_only, old.severity):
            found[finding.id] = finding
    return found


def _age(
    old: Fault | None,
    finding: Finding | None,
    absent_s: float,
    history: History,
    unseen: Mapping[str, Reason],
    limits: Limits,
    resets: Mapping[str, Reset],
) -> Fault | None:
    if old and _another_card(old, history):
        old = None
    if old and not old.uuid:
        old = replace(old, uuid=_card(old.finding.pci, old.boot_id, history))
    passed = old is not None and not lasts(old.finding)
    if old and passed and not old.confirmed and history.now - old.last > limits.xid_count_window_s:
        old = None  # an event waits for another one that confirms it, however often it is judged, and not for ever
    if finding and not (finding.holds_only and old is None):
        return _found(old, finding, history)
    if old is None or not (old.confirmed or passed):
        return None
    if not old.confirmed:
        return old
    clear_s, blind_now = old.finding.clear_s, not could_show(old, history, unseen, limits)
    if clear_s is None:
        if not old.proved:  # absence proves nothing here, and nothing at all while we are blind
            if not blind_now and proved(old, history, resets):
                return replace(old, absent_s=0.0, proved=True, fell=())
            old = watched(old, history)
            return replace(old, absent_s=0.0) if old.absent_s and not blind_now else old
        clear_s = limits.soak_s
    elif (old.finding.witness == SECOND_WITNESS or ends_when_cured(old.finding)) and proved(old, history, resets):
        return None  # it is of before the reset or the reboot; what still is will be said again
    absent_s += old.absent_s
    return None if absent_s >= clear_s and not blind_now else replace(old, absent_s=absent_s)


def _found(old: Fault | None, finding: Finding, history: History) -> Fault:
    if old is None:
        boot_id = history.boots.get(finding.witness, history.boot_id)
        return Fault(
            finding,
            since=finding.evidence.at,
            began=finding.arrived,
            last=finding.arrived,
            uuid=history.uuid(finding.pci) or _card(finding.pci, boot_id, history),
            boot_id=boot_id,
            confirmed=finding.confirm_s <= 0,
            counters=counted(None, history, finding.pci),
            witnesses=(finding.evidence,),
        )
    fresh = finding.arrived > old.last  # a reading that is judged again is no new evidence
    if old.confirmed and finding.severity < old.finding.severity:
        finding = old.finding  # a milder repeat never lowers a standing fault
    elif old.confirmed and not old.proved and _asks_less(finding, old.finding):
        finding = replace(finding, remedy=old.finding.remedy, message=old.finding.message)
    return replace(
        old,
        finding=finding,
        last=max(old.last, finding.arrived),
        uuid=old.uuid or history.uuid(finding.pci),
        boot_id=history.boots.get(finding.witness) or old.boot_id,
        count=old.count + fresh,
        absent_s=0.0,
        proved=False,
        counters=counted(old, history, finding.pci),
        fell=(),
        confirmed=old.confirmed or finding.arrived - old.began >= finding.confirm_s,
        witnesses=_joined(old.witnesses, finding.evidence),
    )


def _asks_less(finding: Finding, old: Finding) -> bool:
    """As another witness does that lacks the words which ask for more, or a recovery action that is milder."""
    return finding.severity is old.severity and finding.remedy.rank < old.remedy.rank


def _joined(witnesses: tuple[Evidence, ...], new: Evidence) -> tuple[Evidence, ...]:
    """The first word of each source, so that one incident shows all who saw it."""
    return witnesses if any(w.source == new.source for w in witnesses) else (*witnesses, new)


def _also(fault: Fault, evidence: Evidence) -> Fault:
    witnesses = _joined(fault.witnesses, evidence)
    return fault if witnesses is fault.witnesses else replace(fault, witnesses=witnesses)


def _card(pci: str, boot_id: str, history: History) -> str:
    """UUID of the card that was there in this boot, whoever read it; empty: not known."""
    card = history.cards.get(pci)
    return card.uuid if card and card.there(boot_id) else ""


def _another_card(fault: Fault, history: History) -> bool:
    uuid = history.uuid(fault.finding.pci)
    return bool(fault.uuid and uuid and fault.uuid != uuid)


def _verdict(memory: Memory, wall: float, resets: frozenset[str]) -> Verdict:
    history = memory.history
    standing = tuple(sorted((f for f in memory.faults.values() if f.confirmed), key=order))
    whole = incidents(standing, history)
    blind_now = {
        name: with_dismissal(name, lapse.told, memory.dismissed)
        for name, lapse in sorted(memory.lapses.items())
        if lapse.counts
    }
    worst = whole[0].finding.severity if whole else Severity.NOTICE
    if worst is Severity.FATAL:
        status = Status.UNHEALTHY
    elif worst is Severity.DEGRADED:
        status = Status.DEGRADED
    else:
        status = Status.UNKNOWN if blind_now else Status.HEALTHY
    worst_now = [f for f in whole if f.finding.severity is worst and worst > Severity.NOTICE]
    acting = [f.finding.remedy for f in [f for f in worst_now if not f.aside] or worst_now]
    return Verdict(
        at=wall,
        status=status,
        remedy=max(acting, key=lambda remedy: remedy.rank, default=Remedy.NONE),
        faults=whole,
        blind=blind_now,
        boot_id=history.boot_id,
        kernel_seq=history.taken_in,
        standing=standing,
        onsets=memory.onsets,
        dismissed=memory.dismissed,
        cards=history.cards,
        resets=resets,
        heard=frozenset(
            card.uuid
            for pci, card in history.cards.items()
            if pci in history.readings or pci in history.lost or pci in history.resets
        ),
        linked=linked(history.cards, history.readings),
    )
