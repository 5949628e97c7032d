"""What is wrong: findings, faults, and the verdict over them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import IntEnum, StrEnum

from agent.model.observation import Failure
from agent.model.remedy import Remedy


@dataclass(frozen=True, slots=True)
class Identity:
    """By what a vendor knows a card; empty: it was never read."""

    index: str = ""  # NVML's
    model: str = ""
    serial: str = ""
    driver: str = ""  # the version that read it last
    slot: str = ""  # the board's, as the firmware names it

    def __bool__(self) -> bool:
        return any(asdict(self).values())

    @property
    def words(self) -> str:
        """``GPU 3, NVIDIA H100 80GB HBM3, serial 1650323000003, driver 580.65.06, slot 7``."""
        named = (("GPU", self.index), ("", self.model), ("serial", self.serial), ("driver", self.driver))
        return ", ".join(f"{name} {value}".strip() for name, value in (*named, ("slot", self.slot)) if value)


@dataclass(frozen=True, slots=True)
class Card:
    """What a slot held when it was last read."""

    uuid: str
    nvlinks: int = 0  # the most that were ever seen up
    peers: frozenset[str] | None = frozenset()  # addresses that its links bind it to in a reset; None: not known
    boot_id: str = ""  # of the boot in which it was last read
    identity: Identity = Identity()

    def there(self, boot_id: str) -> bool:
        """Whether it is known to have been in its slot in this boot: no card is changed without a reboot."""
        return bool(boot_id) and self.boot_id == boot_id


_OVER_WITH_A_RESET = ("xid-74",)  # a link's error: what a person does about it ends in a reset or a reboot


RELAPSING = "gpu-relapsing"  # the rule of a GPU that turned fatal again and again


class Severity(IntEnum):
    NOTICE = 0
    DEGRADED = 1
    FATAL = 2


@dataclass(frozen=True, slots=True)
class Evidence:
    """One thing that was seen, kept with the fault it speaks for."""

    at: float  # Unix seconds
    source: str
    raw: str


@dataclass(frozen=True, slots=True)
class Finding:
    """What a rule concludes from the history right now. ``judge`` owns when it becomes a fault and ends."""

    rule: str  # xid-79, temperature …: the same string in log, metric, condition, alert and README
    pci: str  # empty for the node itself
    severity: Severity
    remedy: Remedy
    message: str
    evidence: Evidence
    arrived: float  # monotonic seconds of the evidence: only new evidence confirms
    witness: str  # the source whose silence stops the clearing clock
    confirm_s: float = 0.0
    clear_s: float | None = None  # None is latched: only a proof of cure ends it
    holds_only: bool = False  # inside the hysteresis: keeps a fault standing, begins none
    signals: tuple[str, ...] = ()  # the readings without which its absence can't be seen
    instance: int | None = None  # the MIG GPU instance that it stays on
    pod: str = ""  # the UID of the pod whose fault it is
    drill: str = ""  # the nonce of the drill that made it; a real fault beside it is another fault
    switch: str = ""  # the address of the NVSwitch, which is the node's: each switch's fault is one of its own

    @property
    def id(self) -> str:
        """``xid-79@0000:1b:00.0``, ``/gi5`` on MIG instance 5, ``/drill`` in a drill, ``rule@node`` of a node's own.

        ``sxid-20034@node/0000:05:00.0`` of one of its NVSwitches.
        """
        part = "" if self.instance is None else f"/gi{self.instance}"
        part += f"/{self.switch}" if self.switch else ""
        return f"{self.rule}@{self.pci or 'node'}{part}{'/drill' if self.drill else ''}"

    @property
    def cure(self) -> Remedy:
        """The remedy that is to be proved, also where a person decides what is done."""
        theirs = self.remedy is Remedy.CONTACT_SUPPORT and self.rule in _OVER_WITH_A_RESET
        return Remedy.RESET_GPU if theirs else self.remedy


@dataclass(frozen=True, slots=True)
class Fault:
    """A finding with its life: when it began, who saw it, how long it has been absent."""

    finding: Finding
    since: float  # Unix seconds of the first evidence
    began: float  # monotonic seconds when it was first found
    last: float  # monotonic seconds of the last evidence
    uuid: str = ""  # of the card in the slot then; another card there ends the fault
    boot_id: str = ""
    count: int = 1
    absent_s: float = 0.0
    confirmed: bool = False
    proved: bool = False  # the cure of a latched fault was proved; it now soaks
    counters: Mapping[str, float] = field(default_factory=dict)  # the least of each: all lower tell a reset
    fell: tuple[str, ...] = ()  # those that fell since the last evidence and proved no reset
    pre_start: bool = False  # only a record from before the agent's start speaks for it
    aside: bool = False  # it was seen only while the GPUs were somebody else's: it is reported, and withdraws nothing
    witnesses: tuple[Evidence, ...] = ()  # the first evidence of each source that saw it
    after: str = ""  # the Job of our reset after which it was seen again: that one is no cure of it
    joined: tuple[Fault, ...] = ()  # its symptoms: faults of their own that this one explains
    doubts: tuple[str, ...] = ()  # where the witnesses disagree

    @property
    def ids(self) -> tuple[str, ...]:
        """Of the fault and its symptoms: one incident, whichever of them leads it."""
        return (self.finding.id, *(symptom.finding.id for symptom in self.joined))


def identity(fault: Fault, cards: Mapping[str, Card]) -> Identity:
    """Of the card that the fault is of, whether or not it is there; empty for the node's own faults."""
    card = cards.get(fault.finding.pci)
    return card.identity if card and fault.uuid in ("", card.uuid) else Identity()


@dataclass(frozen=True, slots=True)
class Reset:
    """One of ours that is done, by the clock of this life of the agent: monotonic seconds."""

    job: str  # its name
    over: float  # what was seen later came after it; 0: no life watched its end, and all that this one sees is later
    known: float  # what is read later is read after it


class Status(StrEnum):
    """One word for the node: the gravest fault that stands; without one, whether everything is seen."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"
    UNKNOWN = "unknown"


class Unseen(StrEnum):
    """Why something can't be seen."""

    UNHEARD = "unheard"  # a source that has finished no poll yet
    SILENT = "silent"  # a source that finished none lately
    FAILED = "failed"  # a source that says itself that it can't see
    UNREAD = "unread"  # a GPU without which polls finish
    MISJUDGED = "misjudged"  # an error of ours: the verdict is the last good one


@dataclass(frozen=True, slots=True)
class Reason:
    """Why something can't be seen, and the same in words for people."""

    kind: Unseen
    words: str
    failure: Failure | None = None  # what a source that failed says of itself
    pci: str = ""  # of the GPU; empty for a source

    def sentence(self, name: str) -> str:
        return f"{name}: {self.words}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is wrong now. ``faults`` are confirmed, worst first, each with its symptoms joined to it."""

    at: float  # Unix seconds: told, and decides nothing
    status: Status
    remedy: Remedy
    faults: tuple[Fault, ...] = ()
    blind: Mapping[str, Reason] = field(default_factory=dict)
    """Sources that should speak and don't, by name, and GPUs that aren't read, as ``GPU 0000:1b:00.0``."""
    boot_id: str = ""
    kernel_seq: int | None = None  # the last kernel record that this verdict has taken in
    standing: tuple[Fault, ...] = ()  # the same faults before any was joined to another: what a restart must know
    onsets: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # when each GPU turned fatal, Unix seconds
    dismissed: frozenset[str] = frozenset()  # the fault ids of the dismissals that were obeyed
    cards: Mapping[str, Card] = field(default_factory=dict)  # the node's GPUs, those that are gone too
    resets: frozenset[str] = frozenset()  # UUIDs of the GPUs whose reset by us was known to the judge
    heard: frozenset[str] = frozenset()  # UUIDs of the GPUs that answered since the agent's start, whatever it was
    linked: Mapping[str, frozenset[str]] = field(default_factory=dict)  # GPU UUID → others that its reset must name

    @property
    def fatal(self) -> tuple[Fault, ...]:
        """Those for which the node is to be out of service."""
        return tuple(f for f in self.faults if f.finding.severity is Severity.FATAL and not f.aside)

    @property
    def blind_lines(self) -> tuple[str, ...]:
        """``blind`` for people: ``nvml: not heard yet``."""
        return tuple(reason.sentence(name) for name, reason in self.blind.items())

    @property
    def withdraw(self) -> bool:
        """Whether the node should be out of service, whoever uses it."""
        return bool(self.fatal)


Sets = Mapping[str, frozenset[str]]  # GPU UUID → UUIDs of the others that must be in its reset


@dataclass(frozen=True, slots=True)
class Remembered:
    """What the judge of one life of the agent passes to that of the next."""

    boot_id: str = ""
    kernel_seq: int | None = None
    faults: tuple[Fault, ...] = ()
    onsets: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # when each GPU turned fatal, Unix seconds
    dismissed: frozenset[str] = frozenset()  # the dismissals that were obeyed
    cards: Mapping[str, Card] = field(default_factory=dict)
