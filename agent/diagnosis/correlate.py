"""One incident, one fault: which faults are symptoms of which, and whose word overrules whose."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import replace

from agent.config.source_index import GPUS, SOURCES
from agent.diagnosis.epoch import COUNTERS
from agent.diagnosis.history import History, number
from agent.diagnosis.rules import dcgm, kernel
from agent.diagnosis.rules.recovery import ROW as RECOVERY
from agent.diagnosis.second_word import contained
from agent.model.fault import Fault, Finding, Severity
from agent.model.remedy import Remedy

_MEMORY_XIDS = ("xid-48", "xid-140", "xid-95", "xid-94", "xid-64", "xid-63")
_DRIVER_REFUSES = ("gpu-power-cable", "gpu-needs-open-modules", "gpu-unusable")
# A symptom → what may explain it, the best explanation first.
EXPLAINED_BY = {
    "gpu-lost": ("xid-79",),
    "gpu-missing": ("xid-79", "gpu-lost", *_DRIVER_REFUSES),
    "gpu-needs-open-modules": ("xid-79", "gpu-lost"),
    "gpu-power-cable": ("xid-54",),
    "gpu-unusable": ("xid-79", "gpu-lost", *_DRIVER_REFUSES[:-1]),
    "gpu-init-failed": ("xid-79", "gpu-lost", "xid-54", *_DRIVER_REFUSES, "gpu-missing", "xid-143"),
    "pcie-link-gone": ("xid-79", "gpu-lost", "gpu-missing"),
    "ecc-uncorrected": _MEMORY_XIDS,
    "row-remap-pending": ("xid-63", "xid-177", *_MEMORY_XIDS),
    "row-remap-failure": ("xid-64",),
    "xid-154": (RECOVERY.rule,),  # the same word of the driver's
    "xid-171": ("xid-48",),
    "xid-172": ("xid-48",),
    "driver-hung": (SOURCES[GPUS].silent, "xid-79", "xid-119", "xid-120", "gpu-lost", "gpu-missing"),
    "gpu-silent": ("xid-79", "gpu-lost", "gpu-missing", "gpu-reset-required"),
    **dcgm.EXPLAINED_BY,
}
# What the driver said of some GPU, and not which → how the rules begin that name the GPU.
_OF_SOME_GPU = {
    "gpu-lost": ("gpu-lost", "xid-79", "gpu-missing", "pcie-link-gone"),
    "gpu-reset-required": ("gpu-reset-required", RECOVERY.rule, "gpu-lost", "xid-"),
    **dict.fromkeys((*_DRIVER_REFUSES, "gpu-init-failed"), ("gpu-lost", *_DRIVER_REFUSES, "gpu-init-failed", "xid-")),
}
# Accesses that were refused: what they end may look like an error of memory.
_PRIV = {"xid-137", *(row.rule for row in kernel.ROWS if "priv " in row.meaning.lower())}
_TOGETHER_S = 60.0
# These follow from almost anything: the worst fault of the GPU explains them.
_FOLLOW_ANY = (RECOVERY.rule, "gpu-reset-required")
_EXPLAIN_NONE = (*_FOLLOW_ANY, "gpu-silent")
_HEADS = ("xid-", "gpu-", "ecc-")
_LOST = ("xid-79",)  # no reset reaches such a GPU, though the driver asks for one
_SEVERAL = 2


def overruled(faults: Mapping[str, Fault], history: History) -> dict[str, Fault]:
    """The catalogue's word on Xids gives way to the driver's recovery action, and 48 to a 94 beside it.

    What is changed stays changed: an action that goes back to 0 never lowers a FATAL Xid, nor lifts one. Nor does an
    action lower one that only asks for a person, or that nobody knows: it doesn't say that the GPU can be used. Nor
    one that reaches no GPU that is lost. One that asks for a reboot of the system says nothing of a GPU beside which
    another one is to blame.
    """
    accused, neighbours = _accused(faults.values())
    ruled = dict(faults)
    for key, fault in faults.items():
        finding = fault.finding
        if accused and key in neighbours and finding.severity > Severity.NOTICE:
            why = f"{finding.message}, as {accused.finding.id} has it: this GPU shows no fault of its own"
            ruled[key] = replace(fault, finding=replace(finding, severity=Severity.NOTICE, message=why))
        if not finding.rule.startswith("xid-") or finding.severity is Severity.NOTICE or fault.proved or finding.drill:
            continue
        action = faults.get(asked := f"{RECOVERY.rule}@{finding.pci}")
        if asked in neighbours:
            continue
        if action and action.confirmed and not _is_over(action, history) and _speaks(action.finding, finding):
            finding = replace(finding, severity=action.finding.severity, remedy=action.finding.remedy)
        elif finding.rule == "xid-48" and finding.severity is Severity.FATAL and contained(history, finding.pci):
            finding = replace(finding, severity=Severity.DEGRADED)
        ruled[key] = replace(fault, finding=finding)
    return ruled


def _is_over(action: Fault, history: History) -> bool:
    """Whether NVML reads since then that the driver asks for nothing: the fault stands only until that is sure."""
    reading = history.readings.get(action.finding.pci)
    read_since = reading is not None and reading.arrived > action.last
    return action.absent_s > 0 or (read_since and number(reading, "recovery_action") == 0)


def _speaks(action: Finding, xid: Finding) -> bool:
    """An action that was made a notice by an override overrules nothing."""
    if action.severity is Severity.NOTICE or (xid.rule in _LOST and action.remedy.rank < xid.remedy.rank):
        return False
    return action.severity >= xid.severity or action.remedy is not Remedy.CONTACT_SUPPORT


def _accused(faults: Iterable[Fault]) -> tuple[Fault | None, Set[str]]:
    """The fault for which the driver asks for a reboot, and the ids of the faults of GPUs that only ask along.

    The driver may ask it of every GPU for one that is broken. To blame are those with evidence of their own, the
    gravest; where none has any, the first that asked.
    """
    real = [f for f in faults if f.confirmed and not (f.proved or f.finding.drill)]
    asking = {f.finding.pci: f for f in real if f.finding.rule == RECOVERY.rule and f.finding.remedy.row.whole_node}
    evidence = sorted((f for f in real if asking and _may_be_why(f, asking.keys())), key=order)
    own = [f for f in evidence if f.finding.severity is evidence[0].finding.severity]
    if len(asking) < _SEVERAL and not any(f.finding.pci for f in own):
        return None, frozenset()
    accused = own[0] if own else min(asking.values(), key=order)
    innocent = asking.keys() - {accused.finding.pci, *(f.finding.pci for f in own)}
    return accused, {asking[pci].finding.id for pci in innocent}


def _may_be_why(fault: Fault, asking: Set[str]) -> bool:
    """Whether it may be why the driver asks for a reboot: a fault of a GPU that asks, or one that wants that itself."""
    finding = fault.finding
    wants = finding.severity is Severity.FATAL and finding.remedy.row.whole_node
    named = not finding.pci or (finding.rule.startswith(_HEADS) and finding.rule not in _EXPLAIN_NONE)
    here = finding.pci in asking and finding.severity > Severity.NOTICE
    return named and not fault.aside and (here or wants)


def incidents(faults: tuple[Fault, ...], history: History) -> tuple[Fault, ...]:
    """Confirmed faults, worst first, each symptom joined to the fault that explains it."""
    by_id = {fault.finding.id: fault for fault in faults}
    heads = {key: _head(fault, by_id) for key, fault in by_id.items()}
    joined: dict[str, list[Fault]] = {}
    for key, fault in by_id.items():
        if heads[key] != key:
            joined.setdefault(_root(key, heads), []).append(fault)
    whole = (_joined(by_id[key], joined.get(key, [])) for key, head in heads.items() if head == key)
    doubted = (replace(fault, doubts=why) if (why := _doubts(fault, faults, history)) else fault for fault in whole)
    return tuple(sorted(doubted, key=order))


def order(fault: Fault) -> tuple[float, float, float, float, str]:
    """Worst first, then hardest remedy, then oldest: by the monotonic clock, and by the wall's after a restart."""
    finding = fault.finding
    return (-finding.severity, -finding.remedy.rank, fault.began, fault.since, finding.id)


def _head(fault: Fault, by_id: Mapping[str, Fault]) -> str:
    finding = fault.finding
    if meant := [other for other in by_id.values() if _may_be_meant(other.finding, finding)]:
        return min(meant, key=order).finding.id
    # An engine that doesn't know where its switches are tells what one of them told.
    placed = [f for f in by_id.values() if f.finding.switch and f.finding.rule == finding.rule]
    if placed and not finding.switch:
        return min(placed, key=order).finding.id
    for rule in EXPLAINED_BY.get(finding.rule, ()):
        if explaining := [other for other in by_id.values() if _explains(rule, other.finding, finding)]:
            return min(explaining, key=order).finding.id
    if finding.rule == RECOVERY.rule and finding.severity is Severity.NOTICE:
        accused, _ = _accused(by_id.values())
        return accused.finding.id if accused and finding.remedy.row.whole_node else finding.id
    if finding.rule in _FOLLOW_ANY or (finding.rule == "xid-74" and finding.severity is Severity.NOTICE):
        others = [
            other
            for other in by_id.values()
            if other.finding.pci == finding.pci
            and other.finding.rule not in _EXPLAIN_NONE
            and other.finding.severity > Severity.NOTICE
            and not other.finding.drill  # explains nothing that is real
            and other.finding.rule.startswith(_HEADS)
        ]
        if others:
            return min(others, key=order).finding.id
    return finding.id


def _may_be_meant(other: Finding, symptom: Finding) -> bool:
    """Whether it names the GPU of which the driver said only that there is one."""
    if symptom.pci or not other.pci or other.drill or other.severity < symptom.severity:
        return False
    return other.rule.startswith(_OF_SOME_GPU.get(symptom.rule, ()))


def _explains(rule: str, other: Finding, symptom: Finding) -> bool:
    """On the same GPU; on the same MIG instance where both name one."""
    named = other.rule.startswith(rule[:-1]) if rule.endswith("*") else other.rule == rule
    apart = None not in (other.instance, symptom.instance) and other.instance != symptom.instance
    return named and other.pci == symptom.pci and not apart


def _root(key: str, heads: Mapping[str, str]) -> str:
    while heads[key] != key:
        key = heads[key]
    return key


def _joined(head: Fault, symptoms: list[Fault]) -> Fault:
    """The severity of the worst of them; a proved head leaves the word to what still stands."""
    if not symptoms:
        return head
    finding = head.finding
    worst = min(symptoms, key=order).finding
    if worst.severity > finding.severity or (head.proved and worst.severity == finding.severity):
        finding = replace(finding, severity=worst.severity, remedy=worst.remedy)
    witnesses = list(head.witnesses)
    for symptom in symptoms:
        witnesses += [
            w
            for w in symptom.witnesses
            if w.source not in {x.source for x in head.witnesses} or w.raw not in {x.raw for x in witnesses}
        ]
    return replace(
        head,
        finding=finding,
        since=min(fault.since for fault in (head, *symptoms)),
        proved=head.proved and all(s.proved or s.finding.severity < finding.severity for s in symptoms),
        aside=all(f.aside for f in (head, *symptoms) if f.finding.severity >= finding.severity),
        pre_start=head.pre_start and all(s.pre_start for s in symptoms),
        witnesses=tuple(witnesses),
        joined=tuple(sorted(symptoms, key=order)),
    )


def _doubts(fault: Fault, standing: tuple[Fault, ...], history: History) -> tuple[str, ...]:
    """What another witness says against the fault, in sentences."""
    finding = fault.finding
    reading = history.readings.get(finding.pci)
    if reading is None or reading.arrived <= fault.last or finding.pci in history.lost or fault.proved:
        return ()
    rules = {finding.rule, *(symptom.finding.rule for symptom in fault.joined)}
    doubts = []
    if rules & {"gpu-lost", "xid-79"}:
        doubts.append("NVML still reads this GPU")
    action = history.number(finding.pci, "recovery_action")
    if action == 0 and finding.severity is Severity.FATAL and rules & {RECOVERY.rule, *_xids(rules)}:
        doubts.append("NVML's recovery action is none")
    refused = [one for one in standing if one.finding.rule in _PRIV and abs(one.last - fault.last) <= _TOGETHER_S]
    if "xid-94" in rules and refused and history.number(finding.pci, "ecc_uncorrected_volatile") == 0:
        count = sum(one.count for one in refused)
        names = ", ".join(sorted({one.finding.rule for one in refused}))
        doubts.append(
            f"its uncorrectable ECC errors read zero, and {count} PRIV errors came within a minute ({names}): look at "
            "what was refused on the NVLink fabric before the memory"
        )
    fallen = {name for one in (fault, *fault.joined) for name in one.fell}
    if finding.remedy is Remedy.RESET_GPU and (names := ", ".join(name for name in COUNTERS if name in fallen)):
        counters = "counters" if "," in names else "counter"
        doubts.append(
            f"its {counters} {names} began anew, which alone proves no reset since the fault: a driver "
            "reload or a reboot would, or dismiss it"
        )
    return tuple(doubts)


def _xids(rules: set[str]) -> set[str]:
    return {rule for rule in rules if rule.startswith("xid-")}
