"""GPUs that are gone: lost by NVML's word, by the kernel's, missing from the enumeration or from the count."""

from __future__ import annotations

from collections.abc import Iterator

from agent.config.limits import Limits
from agent.config.source_index import GPUS
from agent.diagnosis.cards import HELD_BY_NOBODY_ELSE, given_away, missing
from agent.diagnosis.history import History, number
from agent.diagnosis.row import TABLE
from agent.model.fault import Finding, Severity
from agent.model.observation import Observation, Signal

LOST = TABLE["gpu-lost"]
RESET_REQUIRED = TABLE["gpu-reset-required"]
MISSING = TABLE["gpu-missing"]
REPLACED = TABLE["gpu-replaced"]
COUNT = TABLE["gpu-count"]
NONE = TABLE["gpu-none"]
WITHHELD = TABLE["gpu-withheld"]

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
    elif count == 0 and history.offer.due and not dict(missing(alive)):
        yield NONE.found(alive, limits, f"{NONE.meaning} ({history.offer.due})", pci="")
    if count and history.offer.withheld:
        offers = ", ".join(f"0 of {there} {resource}" for resource, there in history.offer.withheld.items())
        yield WITHHELD.found(alive, limits, f"pods are offered {offers}, and NVML reads {count:.0f} GPUs", pci="")


def given_up(history: History) -> set[str]:
    """The ids of the faults of GPUs that nobody misses any more: another driver holds them now."""
    alive = history.alive.get(GPUS)
    return {f"{MISSING.rule}@{pci}" for pci in given_away(alive)} if alive else set()


def _missing(history: History, alive: Observation, count: float, limits: Limits) -> Iterator[Finding]:
    """Each address that NVML doesn't enumerate and that holds no card that is read elsewhere.

    A GPU that was given to vfio or another driver isn't missing. Withdrawn for is only one that we
    read before and that the NVIDIA driver still holds or the bus lost, while others are read: if all
    are gone at once it is more likely our own access to them.
    """
    read = {history.uuid(pci) for pci in history.readings}
    for pci, driver in missing(alive):
        card = history.cards.get(pci)
        moved = card is not None and card.uuid in read and pci not in history.readings
        if driver not in HELD_BY_NOBODY_ELSE or moved:
            continue
        ours = pci in history.readings and count > 0 and driver in (_ABSENT, _NVIDIA)
        where = {_ABSENT: "and the PCI bus", _UNBOUND: "and is bound to no driver"}.get(driver, "")
        never = driver == _UNBOUND and card is None and pci not in history.readings
        message = "an NVIDIA GPU is bound to no driver" if never else f"{MISSING.meaning} {where}".strip()
        yield MISSING.found(alive, limits, message, severity=None if ours else Severity.DEGRADED, pci=pci)
