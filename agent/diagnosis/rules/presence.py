"""GPUs that are gone: lost by NVML's word, by the kernel's, missing from the enumeration or from the count."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from agent.config.limits import Limits
from agent.config.source_index import GPUS
from agent.diagnosis.cards import HELD_BY_NOBODY_ELSE, given_away, missing, off_the_bus, silent
from agent.diagnosis.history import History, number
from agent.diagnosis.row import TABLE
from agent.diagnosis.rules import xid
from agent.diagnosis.seen import hung, unread
from agent.model.fault import Evidence, Finding, Severity
from agent.model.observation import Observation, Signal
from agent.model.text import quoted

LOST = TABLE["gpu-lost"]
RESET_REQUIRED = TABLE["gpu-reset-required"]
MISSING = TABLE["gpu-missing"]
REPLACED = TABLE["gpu-replaced"]
COUNT = TABLE["gpu-count"]
NONE = TABLE["gpu-none"]
WITHHELD = TABLE["gpu-withheld"]
REFUSED = TABLE["pods-refused"]

_NAMED = 3  # workloads, in a message
_ABSENT, _NVIDIA, _UNBOUND = HELD_BY_NOBODY_ELSE[:3]


def find(history: History, limits: Limits) -> Iterator[Finding]:
    for observation in history.lost.values():
        yield LOST.found(observation, limits)
    for observation in history.resets.values():
        yield RESET_REQUIRED.found(observation, limits)
    for observation in history.fresh:
        if observation.signal is Signal.LOST and observation.pci not in history.lost:
            yield LOST.found(observation, limits)
    for pci, before in history.replaced.items():
        message = f"{REPLACED.meaning}: {history.uuid(pci)} where {before} was"
        yield REPLACED.found(history.readings[pci], limits, message)
    alive = history.alive.get(GPUS)
    if alive is None or GPUS in history.failed:
        return
    count = number(alive, "gpu_count")
    yield from _missing(history, alive, count or 0, limits)
    if limits.expected_gpus is not None and count is not None and count < limits.expected_gpus:
        yield COUNT.found(alive, limits, f"{count:.0f} GPUs where {limits.expected_gpus} are expected", pci="")
    elif count == 0 and not [*missing(alive), *unread(history, limits.silent_s)]:  # none is given away, or silent
        yield NONE.found(alive, limits, f"{NONE.meaning} ({history.offer.due or 'the driver is loaded'})", pci="")
    if count and history.offer.withheld:
        offers = ", ".join(f"0 of {there} {resource}" for resource, there in history.offer.withheld.items())
        yield WITHHELD.found(alive, limits, f"pods are offered {offers}, and NVML reads {count:.0f} GPUs", pci="")
    refused = history.offer.refused
    ill = [*history.lost, *history.resets, *missing(alive), *hung(history), *unread(history, limits.silent_s)]
    if len(refused) >= limits.refused_workloads and count and not ill:
        names = f"{', '.join(refused[:_NAMED])}{' and others' if len(refused) > _NAMED else ''}"
        yield REFUSED.found(alive, limits, f"{REFUSED.meaning}: of {len(refused)} workloads ({names})", pci="")


def given_up(history: History) -> set[str]:
    """The ids of the faults of GPUs that nobody misses any more: another driver holds them now."""
    alive = history.alive.get(GPUS)
    return {f"{MISSING.rule}@{pci}" for pci in given_away(alive)} if alive else set()


def gone(history: History) -> dict[str, str]:
    """Each address that NVML should enumerate and doesn't, with what holds it by the kernel's word.

    A GPU that was given to vfio or another driver isn't missing, nor one that is read elsewhere. One that was never
    read is known by the bus, or by what the kernel logged of its address before the agent's first start.
    """
    alive = history.alive.get(GPUS)
    if alive is None or GPUS in history.failed:
        return {}
    answering = {*history.readings, *history.lost, *history.resets, *silent(alive)}
    named = {record.pci for record in history.past.values() if _of_a_gpu(record)} - answering
    if "on_bus" in alive.values:  # as in all but older recordings: a sandbox has no bus
        named = {pci for pci in named if off_the_bus(alive, history.readings, pci)}
    there = dict.fromkeys(named, _ABSENT) | dict(missing(alive))
    read = {history.uuid(pci) for pci in history.readings}
    moved = {pci for pci, card in history.cards.items() if card.uuid in read and pci not in history.readings}
    return {pci: driver for pci, driver in there.items() if driver in HELD_BY_NOBODY_ELSE and pci not in moved}


def _of_a_gpu(record: Observation) -> bool:
    """Whether it says of a GPU that it can't be used."""
    if record.signal is Signal.XID:
        code = xid.CATALOG.get(record.value) if isinstance(record.value, int) else None
        return code is not None and code.row.severity is Severity.FATAL
    return bool(record.pci) and record.signal in (Signal.LOST, Signal.DRIVER)


def _missing(history: History, alive: Observation, count: float, limits: Limits) -> Iterator[Finding]:
    """Withdrawn for is only a GPU that we read before and that the NVIDIA driver still holds or the bus lost, while
    others are read: if all are gone at once it is more likely our own access to them.
    """
    for pci, driver in gone(history).items():
        read = pci in history.readings
        ours = read and count > 0 and driver in (_ABSENT, _NVIDIA)
        if read or pci in history.cards:
            where = {_ABSENT: "and the PCI bus", _UNBOUND: "and is bound to no driver"}.get(driver, "")
            message = f"{MISSING.meaning} {where}".strip()
        else:
            where = {_UNBOUND: "is bound to no driver"}.get(driver, "is not in NVML's enumeration")
            message = f"an NVIDIA GPU {where}"
        records = [record for record in history.past.values() if record.pci == pci and _of_a_gpu(record)]
        if records:
            message += f" at {pci}; before the agent's start the kernel said: {quoted(records[-1].raw)}"
        found = MISSING.found(alive, limits, message, severity=None if ours else Severity.DEGRADED, pci=pci)
        for record in records:
            yield replace(found, evidence=Evidence(record.at, record.source, record.raw))
        yield found
