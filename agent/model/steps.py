"""The steps that change the cluster, one write each, and the wait."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from agent.model.devices import Device
from agent.model.world import About, Cause, Condition, PermitKind, Pod, Taint


@dataclass(frozen=True, slots=True)
class Report:
    """Write conditions, labels, the stored state and the ledger; nothing that keeps a pod away."""

    conditions: tuple[Condition, ...] = ()
    labels: Mapping[str, str | None] = field(default_factory=dict)
    stored: str | None = None
    history: str | None = None


@dataclass(frozen=True, slots=True)
class Retaint:
    """Set our taints to exactly these, with labels, stored state and the ledger in the same write."""

    taints: tuple[Taint, ...]
    labels: Mapping[str, str | None] = field(default_factory=dict)
    stored: str | None = None
    history: str | None = None
    cordon: str | None = None  # the reason of a cordon to set; empty: undo ours; None: leave it as it is


@dataclass(frozen=True, slots=True)
class TakePermit:
    kind: PermitKind
    index: int
    confirms: bool = False  # it is ours already
    early: bool = False  # before the pool is read: whether the budget has a place for it is seen then


@dataclass(frozen=True, slots=True)
class GivePermit:
    kind: PermitKind
    index: int


@dataclass(frozen=True, slots=True)
class Evict:
    pod: Pod
    checkpoint: str = "none"  # how its checkpoint ended: none, saved, expired, unconfirmed
    cause: Cause = field(default_factory=Cause)


@dataclass(frozen=True, slots=True)
class Delete:
    """Past its budget, after the drain's deadline and where the configuration says so."""

    pod: Pod
    checkpoint: str = "none"
    cause: Cause = field(default_factory=Cause)


@dataclass(frozen=True, slots=True)
class AskCheckpoint:
    """Ask the pod to save its work, again and again. What was asked before that drain began is another incident's."""

    pod: Pod
    drain: int = 0  # its beginning, Unix seconds


@dataclass(frozen=True, slots=True)
class StartJob:
    """Create an attempt's Job from its remedy's template, on this node."""

    name: str
    remedy: str
    uuids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Diagnose:
    """Begin DCGM's diagnosis of these GPUs, by the agent itself."""

    name: str
    level: int
    uuids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SetFence:
    """Keep new pods off one device, by a rule of ours: made without effect first, then changed to have one."""

    device: Device
    gpu: str  # UUID of the GPU for which it is
    uid: str = ""  # of the rule that is to have its effect; empty: it is made
    deletes: tuple[tuple[Pod, Cause], ...] = ()  # pods that Kubernetes is to delete from it, past budgets; none: nobody


@dataclass(frozen=True, slots=True)
class LiftFence:
    """Remove such a rule."""

    device: Device
    uid: str


@dataclass(frozen=True, slots=True)
class Announce:
    """An Event on the Node, on a pod of it, or on what controls such a pod.

    The name is derived from what it tells, so that it is told once.
    """

    name: str
    warning: bool
    reason: str
    message: str
    pod: str = ""  # its UID, where nothing else is known of it
    about: About | None = None  # None: that pod, or the Node


@dataclass(frozen=True, slots=True)
class Post:
    """Tell the receiver of the preset webhook, again and again until it has taken it."""

    id: str  # the same however often it is posted
    word: str  # requested, withdrawn
    subject: str  # the fault's id
    data: Mapping[str, object] = field(default_factory=dict)


class On(StrEnum):
    """What a Wait waits for, as far as alerts tell it apart."""

    OTHER = "other"  # it passes by itself
    PERMIT = "permit"  # the budget is spent
    EVICTION = "eviction"  # somebody refused one, or nobody answered
    POD = "pod"  # only a person can move it
    REPAIR = "repair"  # only a person can decide how it goes on
    PROBATION = "probation"  # it was cured, and may break again: it passes by itself, after hours
    REFUSED = "refused"  # the API server refuses what the agent's mode needs
    STOPPED = "stopped"  # somebody or something keeps the agent from acting at all


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing may be done about this now, and why."""

    why: str
    on: On = On.OTHER


_OfAPod = AskCheckpoint | Evict | Delete
_OfADevice = SetFence | LiftFence
Step = Report | Retaint | TakePermit | GivePermit | _OfADevice | _OfAPod | StartJob | Diagnose | Announce | Post | Wait
