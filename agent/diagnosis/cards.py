"""The cards that the node is known to have, so that one that is gone is missed even by an agent that never saw it."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import replace

from agent.diagnosis.linked import peers_of
from agent.model.fault import Card, Identity
from agent.model.observation import Missing, Observation
from agent.model.text import printable

_LONGEST = 64  # characters of one name
ABSENT = "absent"
HELD_BY_NOBODY_ELSE = (ABSENT, "nvidia", "none", "unknown")  # the last: the kernel's word can't be had


def card_of(reading: Observation, before: Card | None, boot_id: str, alive: Observation | None) -> Card | None:
    """The card that was read in this boot, with the most NVLinks it ever had up; None if it can't be told.

    ``alive`` is NVML's last heartbeat: the driver and the boards' slots are in it.
    """
    uuid, links = reading.values.get("uuid"), reading.values.get("nvlink_active")
    if not isinstance(uuid, str) or isinstance(uuid, Missing):
        return None
    before = before if before and before.uuid == uuid else None
    most = max(before.nvlinks if before else 0, int(links) if isinstance(links, int | float) else 0)
    return Card(uuid, most, peers_of(reading, before), boot_id, _identity(reading, before, alive))


def _identity(reading: Observation, before: Card | None, alive: Observation | None) -> Identity:
    """What can't be read this time stays as it was."""
    slots = dict(entry.split("=", 1) for entry in _text(alive, "slots").split(",") if "=" in entry)
    now = {
        "index": _text(reading, "index"),
        "model": _text(reading, "name"),
        "serial": _text(reading, "serial"),
        "driver": _text(alive, "driver_version"),
        "slot": slots.get(reading.pci, ""),
    }
    known = {name: value[:_LONGEST] for name, value in now.items() if value}
    return replace(before.identity if before else Identity(), **known)


def _text(observation: Observation | None, name: str) -> str:
    value = observation.values.get(name) if observation else None
    return "" if value is None or isinstance(value, Missing) else printable(str(value))


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
