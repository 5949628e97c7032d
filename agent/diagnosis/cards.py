"""The cards that the node is known to have, so that one that is gone is missed even by an agent that never saw it."""

from __future__ import annotations

from collections.abc import Container, Iterator

from agent.diagnosis.linked import peers_of
from agent.model.fault import Card
from agent.model.observation import Missing, Observation

ABSENT = "absent"
HELD_BY_NOBODY_ELSE = (ABSENT, "nvidia", "none", "unknown")  # the last: the kernel's word can't be had


def card_of(reading: Observation, before: Card | None, boot_id: str) -> Card | None:
    """The card that was read in this boot, with the most NVLinks it ever had up; None if it can't be told."""
    uuid, links = reading.values.get("uuid"), reading.values.get("nvlink_active")
    if not isinstance(uuid, str) or isinstance(uuid, Missing):
        return None
    most = before.nvlinks if before and before.uuid == uuid else 0
    most = max(most, int(links) if isinstance(links, int | float) else 0)
    return Card(uuid, most, peers_of(reading, before), boot_id)


def missing(alive: Observation) -> Iterator[tuple[str, str]]:
    """Each address that NVML should enumerate and doesn't, with what holds it by the kernel's word."""
    for entry in str(alive.values.get("missing") or "").split(","):
        pci, _, driver = entry.partition("=")
        if pci:
            yield pci, driver


def silent(alive: Observation | None) -> dict[str, str]:
    """The GPUs that are there and answer NVML nothing, each with the reason in NVML's words."""
    text = str(alive.values.get("silent") or "") if alive else ""
    return {pci: why for pci, found, why in (entry.partition("=") for entry in text.split(";")) if found}


def off_the_bus(alive: Observation | None, read: Container[str], pci: str) -> bool:
    """Whether a poll read other GPUs, and this one is on the PCI bus no more, if it ever was since we began.

    The kernel's word on the bus counts only if it names at least as many GPUs as NVML: a sandbox has no bus.
    """
    if alive is None or pci in read or pci in silent(alive):
        return False
    count, on_bus = alive.values.get("gpu_count"), alive.values.get("on_bus")
    sees = isinstance(count, int) and isinstance(on_bus, int) and 0 < count <= on_bus
    return sees and dict(missing(alive)).get(pci, ABSENT) == ABSENT


def given_away(alive: Observation) -> Iterator[str]:
    """Addresses that vfio or another driver holds: those GPUs aren't the node's to miss."""
    return (pci for pci, driver in missing(alive) if driver not in HELD_BY_NOBODY_ELSE)
