"""What was seen lately, indexed for the rules: an immutable value that each round of observations renews."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from agent.model import Missing, Observation, Signal

# Counters that only a driver reload, a GPU reset or a reboot takes back: one that falls is a new epoch.
_EPOCH_COUNTERS = ("energy_j", "ecc_uncorrected_volatile", "ecc_corrected_volatile", "pcie_replays")
# One Xid reaches us by the kernel log and by NVML: the same code on the same GPU from the other
# witness within this many seconds is the same error.
_SAME_EVENT_S = 5.0
_WINDOW_EVENTS = 64  # per GPU and code: enough for any count that a rule asks for, bounded in a storm


@dataclass(frozen=True, slots=True)
class Tally:
    """How often one Xid code was seen on one GPU, and when lately (monotonic seconds)."""

    count: int
    last_at: float  # Unix seconds
    seen: tuple[float, ...]
    by: Mapping[str, int]  # how often each witness said so


@dataclass(frozen=True, slots=True)
class History:
    """Everything that a rule may ask."""

    now: float = 0.0  # monotonic seconds
    boots: Mapping[str, str] = field(default_factory=dict)  # the boot that each source last named
    kernel_seq: int | None = None  # in the boot that the kernel log last named
    fresh: tuple[Observation, ...] = ()  # events of this round
    past: Mapping[tuple[str, int], Observation] = field(default_factory=dict)  # Xids older than our first start
    readings: Mapping[str, Observation] = field(default_factory=dict)  # the last of each GPU
    first: Mapping[str, Observation] = field(default_factory=dict)  # the first of each GPU in its epoch
    lost: Mapping[str, Observation] = field(default_factory=dict)  # GPUs that don't answer, until one reads again
    alive: Mapping[str, Observation] = field(default_factory=dict)  # the last heartbeat of each source
    failed: Mapping[str, Observation] = field(default_factory=dict)  # sources that say they can't see
    heard: Mapping[str, float] = field(default_factory=dict)  # when each source last saw something
    epochs: Mapping[str, float] = field(default_factory=dict)  # when each GPU's counters were seen to start anew
    tallies: Mapping[tuple[str, int], Tally] = field(default_factory=dict)

    @property
    def boot_id(self) -> str:
        """The boot that ``kernel_seq`` counts in; without the kernel log, NVML's."""
        return self.boots.get("kmsg") or self.boots.get("nvml", "")

    def number(self, pci: str, signal: str) -> float | None:
        """A GPU's last value; None if unsupported, unreadable or not yet read."""
        return number(self.readings.get(pci), signal)

    def within(self, pci: str, code: int, window_s: float) -> int:
        """How many Xids of this code this GPU had within the window."""
        tally = self.tallies.get((pci, code))
        return sum(self.now - seen <= window_s for seen in tally.seen) if tally else 0

    def uuid(self, pci: str) -> str:
        reading = self.readings.get(pci)
        value = reading.values.get("uuid") if reading else None
        return value if isinstance(value, str) and not isinstance(value, Missing) else ""


def number(reading: Observation | None, signal: str) -> float | None:
    value = reading.values.get(signal) if reading else None
    return float(value) if isinstance(value, int | float) else None


def renew(history: History, seen: Iterable[Observation], now: float) -> History:
    """The history after one more round. A clock that goes backwards is taken as standing still."""
    draft = _Draft(history)
    for observation in seen:
        draft.add(observation)
    return draft.finish(max(now, history.now))


class _Draft:
    """A history being renewed: mutable for one round, so that a storm costs no copies."""

    def __init__(self, old: History) -> None:
        self._old = old
        self._boots, self._seq = dict(old.boots), old.kernel_seq
        self._fresh: list[Observation] = []
        self._past, self._readings, self._first = dict(old.past), dict(old.readings), dict(old.first)
        self._lost, self._alive, self._failed = dict(old.lost), dict(old.alive), dict(old.failed)
        self._heard, self._epochs, self._tallies = dict(old.heard), dict(old.epochs), dict(old.tallies)

    def add(self, o: Observation) -> None:
        if o.boot_id and o.boot_id != self._boots.get(o.source):
            self._boots[o.source] = o.boot_id
            if o.source == "kmsg":
                self._seq = None  # each boot counts its records anew
        if o.signal is Signal.FAILED:
            self._failed[o.source] = o
            return
        self._failed.pop(o.source, None)
        self._heard[o.source] = o.seen
        match o.signal:
            case Signal.ALIVE:
                self._alive[o.source] = o
                if self._seq is None and o.source == "kmsg":
                    self._seq = o.seq  # what was there when the log was opened is taken in
            case Signal.READING:
                self._read(o)
            case Signal.XID if isinstance(o.value, int):
                self._xid(o, o.value)
            case Signal.LOST | Signal.RESET_REQUIRED:
                if o.signal is Signal.LOST and o.source == "nvml":
                    self._lost[o.pci] = o
                if not o.past:
                    self._fresh.append(o)
        if o.seq is not None and o.signal is not Signal.ALIVE:
            self._seq = o.seq if self._seq is None else max(self._seq, o.seq)

    def _read(self, o: Observation) -> None:
        before = self._readings.get(o.pci)
        self._lost.pop(o.pci, None)
        if before is None:
            self._first[o.pci] = o
        elif any(_fell(before, o, name) for name in _EPOCH_COUNTERS):
            self._first[o.pci] = o
            self._epochs[o.pci] = o.seen
        self._readings[o.pci] = o

    def _xid(self, o: Observation, code: int) -> None:
        if o.past:
            self._past[o.pci, code] = o
            return
        self._fresh.append(o)
        old = self._tallies.get((o.pci, code)) or Tally(0, o.at, (), {})
        by = {**old.by, o.source: old.by.get(o.source, 0) + 1}
        told = bool(old.seen) and by[o.source] <= old.count and o.seen - old.seen[-1] <= _SAME_EVENT_S
        if told:  # the other witness of an error that is counted already
            self._tallies[o.pci, code] = replace(old, by=by)
        else:
            by[o.source] = max(by[o.source], old.count + 1)
            seen = (*old.seen, o.seen)[-_WINDOW_EVENTS:]
            self._tallies[o.pci, code] = Tally(old.count + 1, o.at, seen, by)

    def finish(self, now: float) -> History:
        return History(
            now,
            self._boots,
            self._seq,
            tuple(self._fresh),
            self._past,
            self._readings,
            self._first,
            self._lost,
            self._alive,
            self._failed,
            self._heard,
            self._epochs,
            self._tallies,
        )


def _fell(before: Observation, after: Observation, signal: str) -> bool:
    old, new = number(before, signal), number(after, signal)
    return old is not None and new is not None and new < old
