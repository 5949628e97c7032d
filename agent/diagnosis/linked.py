"""Which GPUs can only be reset together, as nvidia-smi has it: an incomplete list is refused, and resets nothing. Pure.

Before Ampere every GPU that NVLink joins must be in one reset; from Ampere on each is reset alone. On NVSwitch systems
that takes a running Fabric Manager, else the whole linked set is asked for (nvidia-smi's manual, "--gpu-reset"). NVML
tells of Fabric Manager only through the fabric's state: one GPU that has joined tells that it ran, and where none has,
all of them are reset together. Where NVML has no such state (A100) each is still reset alone: a refusal harms nobody,
and seven healthy GPUs' pods would have left for it each time.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from agent.model.fault import Card
from agent.model.observation import Missing, Observation

_AMPERE = 7
_NOT_STARTED, _IN_PROGRESS, _JOINED = 1, 2, 3  # NVML's states of the fabric; 0: there is none


def peers_of(reading: Observation, before: Card | None) -> frozenset[str] | None:
    """What binds the card in a reset, with all that was ever seen of it; None while it is unknown.

    A link that is down by now still joins: the other end may know it no more.
    """
    known = before.peers if before and before.uuid == reading.values.get("uuid") else frozenset()
    architecture, peers = reading.values.get("architecture"), reading.values.get("nvlink_peers")
    if not isinstance(architecture, int) or architecture >= _AMPERE or peers is None or peers is Missing.UNSUPPORTED:
        return known
    if peers is Missing.UNREADABLE:
        return known or None
    return frozenset(pci for pci in str(peers).split(",") if pci) | (known or frozenset())


def linked(cards: Mapping[str, Card], readings: Mapping[str, Observation]) -> dict[str, frozenset[str]]:
    """The GPUs that can't be reset alone, each with its others."""
    groups = [*_joined(cards), _fabric(readings)]
    together: dict[str, frozenset[str]] = {}
    for group in groups:
        uuids = frozenset(cards[pci].uuid for pci in group if pci in cards)
        for uuid in uuids if len(uuids) > 1 else ():
            together[uuid] = together.get(uuid, frozenset()) | uuids - {uuid}
    return together


def _joined(cards: Mapping[str, Card]) -> list[Collection[str]]:
    """GPUs before Ampere, by their links; if those of one are unknown, it may be linked to any of them."""
    bound = {pci: card.peers for pci, card in cards.items() if card.peers is None or card.peers}
    groups: list[frozenset[str]] = []
    for pci, peers in bound.items():
        group = frozenset({pci, *(bound if peers is None else peers)})
        met = [other for other in groups if other & group]
        groups = [other for other in groups if not other & group] + [group.union(*met)]
    return list(groups)


def _fabric(readings: Mapping[str, Observation]) -> Collection[str]:
    """The GPUs of an NVSwitch system whose Fabric Manager does not run, as far as NVML can say."""
    states = {pci: reading.values.get("fabric_state") for pci, reading in readings.items()}
    if _JOINED in states.values():
        return ()
    return [pci for pci, state in states.items() if state in (_NOT_STARTED, _IN_PROGRESS)]
