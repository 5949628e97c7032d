"""The node's GPUs as DRA drivers publish them, and the fences: rules of ours that keep new pods off single ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from agent.model.fault import Card

TRIED, KEEPS_OFF, DELETES = "None", "NoSchedule", "NoExecute"  # effects; the last also ends what is on the device
CLOSED = (KEEPS_OFF, DELETES)


@dataclass(frozen=True, slots=True, order=True)
class Device:
    """What a driver offers: a GPU, a MIG instance of it, or something else."""

    driver: str
    pool: str
    name: str


@dataclass(frozen=True, slots=True)
class Published:
    """A device as its driver describes it."""

    device: Device
    uuid: str = ""  # of the GPU that it is a part of, else its own
    pci: str = ""  # the address of the GPU that it is, or is a part of
    taints: tuple[str, ...] = ()  # the driver's, in words

    def gpu(self, cards: Mapping[str, Card]) -> str:
        """UUID of the GPU behind it; empty if that isn't known. ``cards`` are the node's, by address."""
        card = cards.get(self.pci)
        return card.uuid if card else self.uuid if self.uuid.startswith("GPU-") else ""


@dataclass(frozen=True, slots=True)
class Fence:
    """A DeviceTaintRule of ours that stands."""

    device: Device
    gpu: str  # UUID of the GPU for which it was set
    effect: str
    uid: str  # the rule's
    said: str = ""  # what Kubernetes says an eviction would hit, as long as this life knows it
    tried_s: int = 0  # seconds since this life saw it first
    former: bool = False  # it is a Node object's of our name that is gone, and goes one day by itself

    @property
    def closed(self) -> bool:
        """Whether it keeps new pods off, and stays."""
        return self.effect in CLOSED and not self.former

    @property
    def words(self) -> str:
        said = f"; of an eviction by Kubernetes it says: {self.said}" if self.said else ""
        return f"device {self.device.name} of {self.device.driver} ({self.gpu}), effect {self.effect}{said}"
