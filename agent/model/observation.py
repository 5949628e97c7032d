"""The words the agent thinks in: frozen values that pass from room to room. Imports nothing from the agent."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import IntEnum, StrEnum
from typing import Any


class Signal(StrEnum):
    """What a source line states."""

    ALIVE = "alive"  # a heartbeat: the source polled or waited and came back
    READING = "reading"  # the values of one GPU at one poll
    XID = "xid"  # an Xid error; value is its code
    SXID = "sxid"  # an NVSwitch error; value is its code, pci the switch's address
    DRIVER = "driver"  # the kernel module's other words; value is one of Words
    LOST = "lost"  # a GPU no longer answers
    RESET_REQUIRED = "reset_required"  # NVML error 16
    HEALTH = "health"  # an incident of DCGM's health check; value is its code
    FAILED = "failed"  # the source as a whole can't see; value is a Failure
    GAP = "gap"  # records were overwritten before they were read; value is how many


class Words(StrEnum):
    """What the kernel module says besides Xids."""

    UVM_FATAL = "uvm_fatal"  # unified memory met an error that only a reboot ends
    INIT_FAILED = "init_failed"  # a GPU's adapter could not be initialised
    API_MISMATCH = "api_mismatch"  # a client's library is of another version than the module
    LOADED = "loaded"  # the module was loaded: no fault, the driver is a fresh one


class Failure(StrEnum):
    """Why a source as a whole can't see. None of them is a hardware fault by itself."""

    NO_LIBRARY = "no_library"  # NVML error 12
    DRIVER_NOT_LOADED = "driver_not_loaded"  # 9
    LIBRARY_MISMATCH = "library_mismatch"  # 18
    NO_PERMISSION = "no_permission"  # 4, or EPERM on a device
    ABSENT = "absent"  # there is nothing to see with, and nobody asked for it
    ASIDE = "aside"  # it was ended on purpose, for a reset or a driver upgrade; raw says why
    HUNG = "hung"  # a call into the driver has not returned; raw says which
    UNREADABLE = "unreadable"  # anything else; raw says what


class Missing(StrEnum):
    """Why a value is absent; a value that was not yet read has no key at all."""

    UNSUPPORTED = "unsupported"  # this GPU or driver has no such value, and never will
    UNREADABLE = "unreadable"  # it has one, and reading it failed this time


Value = int | float | bool | str | Missing | None


@dataclass(frozen=True, slots=True)
class Observation:
    """One fact from one source. ``at`` is Unix seconds by the wall clock and serves people only;
    ``seen`` is the agent's monotonic clock at arrival and serves every decision."""

    at: float
    source: str
    signal: Signal
    pci: str = ""  # the GPU, as 0000:1b:00.0; empty for the node itself
    value: Value = None
    values: Mapping[str, Value] = field(default_factory=dict)
    raw: str = ""  # the line or message as it came, at most 500 characters: hostile input
    boot_id: str = ""
    seq: int | None = None  # the kernel's own record number
    past: bool = False  # the record was there before the agent's first start on this node
    drill: str = ""  # the nonce of the drill that it quotes: user space wrote it, and it may be no fault at all
    seen: float = 0.0

    def to_json(self) -> str:
        """The line a source prints; absent values travel apart from real ones."""
        line: dict[str, Any] = {"at": rfc3339(self.at), "source": self.source, "signal": self.signal}
        if self.pci:
            line["pci"] = self.pci
        if self.value is not None:
            line["value"] = self.value
        if self.values:
            line["values"] = {k: v for k, v in self.values.items() if not isinstance(v, Missing)}
        for missing in Missing:
            names = [k for k, v in self.values.items() if v is missing]
            if names:
                line[missing] = names
        for key in ("raw", "boot_id", "seq", "past", "drill"):
            if value := getattr(self, key):
                line[key] = value
        return json.dumps(line, separators=(",", ":"))


_LARGEST = 2**64  # NVML's largest counters; a longer number is no reading


def parse_line(line: bytes | str, seen: float) -> Observation:
    """Read one source line; ValueError with a reason for anything that is not one."""
    try:
        data = json.loads(line)
        values: dict[str, Value] = dict(data.get("values", {}))
        for missing in Missing:
            values.update(dict.fromkeys(data.get(missing, ()), missing))
        if any(
            not isinstance(v, int | float | str) or (isinstance(v, int) and abs(v) > _LARGEST) for v in values.values()
        ):
            raise ValueError("values must be plain")
        if not isinstance(data.get("value"), int | float | str | None):
            raise ValueError("value must be plain")
        seq = data.get("seq")
        return Observation(
            at=datetime.fromisoformat(data["at"]).timestamp(),
            source=str(data["source"]),
            signal=Signal(data["signal"]),
            pci=normalise_pci(data["pci"]) if data.get("pci") else "",
            value=data.get("value"),
            values=values,
            raw=str(data.get("raw", ""))[:500],
            boot_id=str(data.get("boot_id", ""))[:64],
            seq=None if seq is None else int(seq),
            past=bool(data.get("past", False)),
            drill=str(data.get("drill", ""))[:64],
            seen=seen,
        )
    except (AttributeError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"not a source line: {error!r}") from error


_PCI = re.compile(r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}):([0-9a-f]{2})(?:\.([0-7]))?", re.IGNORECASE)


def normalise_pci(text: str) -> str:
    """``00000000:1B:00.0`` (NVML) and ``0000:1b:00`` (kernel) both become ``0000:1b:00.0``."""
    match = _PCI.fullmatch(str(text).strip())
    if not match:
        raise ValueError(f"not a PCI address: {text!r}"[:100])
    domain, bus, device, function = match.groups()
    return f"{int(domain or '0', 16):04x}:{bus.lower()}:{device.lower()}.{function or '0'}"


def printable(text: str) -> str:
    """Text of a kernel, a process or an API object for people: one line, and nothing that a terminal obeys."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def rfc3339(at: float) -> str:
    """Unix seconds as RFC 3339 in UTC, to the microsecond."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


@dataclass(frozen=True, slots=True)
class Card:
    """What a slot held when it was last read."""

    uuid: str
    nvlinks: int = 0  # the most that were ever seen up
    peers: frozenset[str] | None = frozenset()  # addresses that its links bind it to in a reset; None: not known


class Severity(IntEnum):
    NOTICE = 0
    DEGRADED = 1
    FATAL = 2


class Remedy(StrEnum):
    """The action words, from mildest to hardest; ``rank`` orders them."""

    NONE = "none"
    RESTART_WORKLOAD = "restart_workload"
    CONTACT_SUPPORT = "contact_support"
    RESET_GPU = "reset_gpu"
    REBOOT_NODE = "reboot_node"
    REPLACE_NODE = "replace_node"

    @property
    def rank(self) -> int:
        return _RANKS[self]


_RANKS = {remedy: rank for rank, remedy in enumerate(Remedy)}


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
    seen: float  # monotonic seconds of the evidence: only new evidence confirms
    witness: str  # the source whose silence stops the clearing clock
    confirm_s: float = 0.0
    clear_s: float | None = None  # None is latched: only a proof of cure ends it
    holds_only: bool = False  # inside the hysteresis: keeps a fault standing, begins none
    signals: tuple[str, ...] = ()  # the readings without which its absence can't be seen
    instance: int | None = None  # the MIG GPU instance that it stays on
    pod: str = ""  # the UID of the pod whose fault it is
    drill: str = ""  # the nonce of the drill whose word it is; a real fault beside it is another fault

    @property
    def id(self) -> str:
        """``xid-79@0000:1b:00.0``, ``/gi5`` on MIG instance 5, ``/drill`` in a drill, ``rule@node`` of a node's own."""
        instance = "" if self.instance is None else f"/gi{self.instance}"
        return f"{self.rule}@{self.pci or 'node'}{instance}{'/drill' if self.drill else ''}"


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
    late: bool = False  # only a record from before the agent's start speaks for it
    witnesses: tuple[Evidence, ...] = ()  # the first word of each source that saw it
    joined: tuple[Fault, ...] = ()  # its symptoms: faults of their own that this one explains
    doubts: tuple[str, ...] = ()  # where the witnesses disagree


class Status(StrEnum):
    """One word for the node: the gravest fault that stands; without one, whether everything is seen."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is wrong now. ``faults`` are confirmed, worst first, each with its symptoms joined to it."""

    at: float  # Unix seconds
    status: Status
    remedy: Remedy
    faults: tuple[Fault, ...] = ()
    blind: tuple[str, ...] = ()  # sources that should speak and don't, GPUs that aren't read, each with the reason
    boot_id: str = ""
    kernel_seq: int | None = None  # the last kernel record that this verdict has taken in
    standing: tuple[Fault, ...] = ()  # the same faults before any was joined to another: what a restart must know
    onsets: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # when each GPU turned fatal, Unix seconds
    dismissed: frozenset[str] = frozenset()  # the fault ids of the operator's words that were obeyed
    cards: Mapping[str, Card] = field(default_factory=dict)  # the node's GPUs, those that are gone too
    resets: frozenset[str] = frozenset()  # UUIDs of the GPUs whose reset by us was known to the judge
    idle: frozenset[str] = frozenset()  # ids of degraded faults that are mended now, for nobody uses their GPUs
    heard: frozenset[str] = frozenset()  # UUIDs of the GPUs that answered since the agent's start, whatever it was
    linked: Mapping[str, frozenset[str]] = field(default_factory=dict)  # GPU UUID → others that its reset must name

    @property
    def fatal(self) -> tuple[Fault, ...]:
        return tuple(f for f in self.faults if f.finding.severity is Severity.FATAL)

    @property
    def mended(self) -> tuple[Fault, ...]:
        """The faults that the node is withdrawn and repaired for: the fatal ones, or else those of idle GPUs."""
        return self.fatal or tuple(f for f in self.faults if f.finding.id in self.idle)

    @property
    def withdraw(self) -> bool:
        """Whether the node should be out of service."""
        return bool(self.mended)
