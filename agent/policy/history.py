"""What was seen lately, indexed for the rules: an immutable value that each round of observations renews."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise

from agent.model import Card, Missing, Observation, Signal, Value
from agent.policy.cards import card_of, given_away

# Counters that only a driver reload, a GPU reset or a reboot takes back: one that falls is a new epoch.
_EPOCH_COUNTERS = ("energy_j", "ecc_uncorrected_volatile", "ecc_corrected_volatile", "pcie_replays")
# One Xid reaches us by the kernel log and by NVML: the same code on the same GPU from the other
# witness within this many seconds is the same error.
_SAME_EVENT_S = 5.0
# Counters of which rates and shares of time are judged, kept once a minute for two hours.
TREND = ("hw_thermal_ns", "sw_thermal_ns", "hw_power_brake_ns", "ecc_corrected_volatile", "pcie_replays",
         "nvlink_replay", "nvlink_recovery", "nvlink_crc")  # fmt: skip
# Values that move with the load and that no rule but those of heat looks at.
_RESTLESS = frozenset({"temperature_c", "margin_c", "memory_temperature_c", "power_w", "energy_j", "processes", "pods",
                       "pcie_generation"})  # fmt: skip
_TREND_EVERY_S, _TREND_SAMPLES = 60.0, 121
UNCORRECTABLE_XID = 48
_MOST_REPEATS = 10_000_000  # of one error in one second: more is no count
_MOST_BLAMES, _MOST_PIDS = 512, 1024
_WINDOW_EVENTS = 64  # per GPU and code: enough for any count that a rule asks for, bounded in a storm


@dataclass(frozen=True, slots=True)
class Tally:
    """How often one Xid code was seen on one GPU, and when lately (monotonic seconds)."""

    count: int
    last_at: float  # Unix seconds
    seen: tuple[float, ...]
    by: Mapping[str, int]  # how often each witness said so


@dataclass(frozen=True, slots=True)
class Sample:
    """A GPU's counters at one time; None where a counter was not readable."""

    seen: float
    counters: tuple[float | None, ...]  # as TREND has them


@dataclass(frozen=True, slots=True)
class Blame:
    """An Xid that named the process which made it."""

    seen: float
    pci: str
    code: int
    pid: int


@dataclass(frozen=True, slots=True)
class History:
    """Everything that a rule may ask."""

    now: float = 0.0  # monotonic seconds
    boots: Mapping[str, str] = field(default_factory=dict)  # the boot that each source last named
    kernel_seq: int | None = None  # in the boot that the kernel log last named
    fresh: tuple[Observation, ...] = ()  # events of this round
    past: Mapping[tuple[str, int], Observation] = field(default_factory=dict)  # Xids older than our first start
    readings: Mapping[str, Observation] = field(default_factory=dict)  # the last of each GPU
    before: Mapping[str, Observation] = field(default_factory=dict)  # the one before the last, in the same epoch
    first: Mapping[str, Observation] = field(default_factory=dict)  # the first of each GPU in its epoch
    well: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)  # GPUs found well, and by which values
    suspects: Mapping[str, Observation] = field(default_factory=dict)  # the readings that rules must look at
    cards: Mapping[str, Card] = field(default_factory=dict)  # the node's GPUs, those that are gone too
    lost: Mapping[str, Observation] = field(default_factory=dict)  # GPUs that don't answer, until one reads again
    resets: Mapping[str, Observation] = field(default_factory=dict)  # GPUs that answer only that they need a reset
    alive: Mapping[str, Observation] = field(default_factory=dict)  # the last heartbeat of each source
    failed: Mapping[str, Observation] = field(default_factory=dict)  # sources that say they can't see
    heard: Mapping[str, float] = field(default_factory=dict)  # when each source last saw something
    epochs: Mapping[str, float] = field(default_factory=dict)  # when each GPU's counters were seen to start anew
    tallies: Mapping[tuple[str, int], Tally] = field(default_factory=dict)
    trends: Mapping[str, tuple[Sample, ...]] = field(default_factory=dict)  # of each GPU in its epoch, oldest first
    uncorrectable: Mapping[str, Observation] = field(default_factory=dict)  # the last Xid 48 of each GPU
    blames: tuple[Blame, ...] = ()  # the last Xids with a process
    pods: Mapping[int, str] = field(default_factory=dict)  # pid → pod UID, as the last polls had it
    workloads: Mapping[str, str] = field(default_factory=dict)  # pod UID → namespace/Kind/name, as the cluster has it
    began: float = 0.0  # monotonic seconds of the first round

    @property
    def boot_id(self) -> str:
        """The boot that ``kernel_seq`` counts in; without the kernel log, NVML's."""
        return self.boots.get("kmsg") or self.boots.get("nvml", "")

    def number(self, pci: str, signal: str) -> float | None:
        """A GPU's last value; None if unsupported, unreadable or not yet read."""
        return number(self.readings.get(pci), signal)

    def without(self, found: set[str]) -> History:
        """Remembers as well the GPUs on which nothing was found: while they read the same there is nothing new.

        Counters that moved lately are looked at again, for what they did counts by the time that has passed.
        """
        well = {pci: _settled(reading) for pci, reading in self.suspects.items() if pci not in found}
        flat = {pci: key for pci, key in well.items() if len({s.counters for s in self.trends.get(pci, ())}) < 2}
        return replace(self, well={**self.well, **flat}) if flat else self

    def within(self, pci: str, code: int, window_s: float) -> int:
        """How many Xids of this code this GPU had within the window."""
        tally = self.tallies.get((pci, code))
        return sum(self.now - seen <= window_s for seen in tally.seen) if tally else 0

    def growth(self, pci: str, counter: str, window_s: float, ended_s: float = 0.0) -> tuple[float, float] | None:
        """How much a counter grew over the window that ended so long ago, and the seconds that it really spans.

        None until the whole window was watched, and where the counter is not readable.
        """
        end = self._counter(pci, counter, ended_s) if ended_s else self._latest(pci, counter)
        begin = self._counter(pci, counter, ended_s + window_s)
        if begin is None or end is None or end[0] <= begin[0]:
            return None
        return end[1] - begin[1], end[0] - begin[0]

    def minutes(self, pci: str, counter: str, count: int) -> tuple[float, ...]:
        """A counter's growth a minute between its last samples, newest last, at most ``count``."""
        index = TREND.index(counter)
        samples = [(s.seen, s.counters[index]) for s in self.trends.get(pci, ())[-count - 1 :]]
        return tuple(
            60 * (new - old) / (after - before)
            for (before, old), (after, new) in pairwise(samples)
            if old is not None and new is not None
        )

    def _counter(self, pci: str, counter: str, age_s: float) -> tuple[float, float] | None:
        """The youngest sample that is at least so old."""
        index = TREND.index(counter)
        now = self.readings[pci].seen  # not the round's time: judging more often must conclude nothing else
        for sample in reversed(self.trends.get(pci, ())):
            if now - sample.seen >= age_s:
                value = sample.counters[index]
                return None if value is None else (sample.seen, value)
        return None

    def _latest(self, pci: str, counter: str) -> tuple[float, float] | None:
        value, reading = self.number(pci, counter), self.readings.get(pci)
        return None if value is None or reading is None else (reading.seen, value)

    def times(self, pci: str, code: int) -> tuple[float, ...]:
        """When this GPU had this Xid lately, monotonic seconds."""
        tally = self.tallies.get((pci, code))
        return tally.seen if tally else ()

    def uuid(self, pci: str) -> str:
        reading = self.readings.get(pci)
        value = reading.values.get("uuid") if reading else None
        return value if isinstance(value, str) and not isinstance(value, Missing) else ""


def number(reading: Observation | None, signal: str) -> float | None:
    value = reading.values.get(signal) if reading else None
    return float(value) if isinstance(value, int | float) else None


def _pods(reading: Observation) -> Iterator[tuple[int, str]]:
    for entry in str(reading.values.get("pods") or "").split(","):
        pid, _, pod = entry.partition("=")
        if pid.isdecimal() and pod:
            yield int(pid), pod


def _settled(reading: Observation) -> tuple[Value, ...]:
    return tuple(value for name, value in reading.values.items() if name not in _RESTLESS)


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
        self._before, self._cards = dict(old.before), dict(old.cards)
        self._resets, self._uncorrectable = dict(old.resets), dict(old.uncorrectable)
        self._lost, self._alive, self._failed = dict(old.lost), dict(old.alive), dict(old.failed)
        self._heard, self._epochs, self._tallies = dict(old.heard), dict(old.epochs), dict(old.tallies)
        self._trends, self._blames, self._pods = dict(old.trends), list(old.blames), dict(old.pods)

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
                for pci in given_away(o):
                    self._cards.pop(pci, None)
                if self._seq is None and o.source == "kmsg":
                    self._seq = o.seq  # what was there when the log was opened is taken in
            case Signal.READING:
                self._read(o)
            case Signal.XID if isinstance(o.value, int):
                self._xid(o, o.value)
            case Signal.LOST | Signal.RESET_REQUIRED | Signal.SXID | Signal.DRIVER:
                if o.signal is Signal.LOST and o.source == "nvml":
                    self._lost[o.pci] = o
                if o.signal is Signal.RESET_REQUIRED:
                    self._resets[o.pci] = o
                if not o.past:
                    self._fresh.append(o)
        if o.seq is not None and o.signal is not Signal.ALIVE:
            self._seq = o.seq if self._seq is None else max(self._seq, o.seq)

    def _read(self, o: Observation) -> None:
        before = self._readings.get(o.pci)
        self._lost.pop(o.pci, None)
        self._resets.pop(o.pci, None)
        for pid, pod in _pods(o):
            self._pods.pop(pid, None)  # the youngest last
            self._pods[pid] = pod
        if card := card_of(o, self._cards.get(o.pci)):
            self._cards[o.pci] = card
        self._before[o.pci] = before or o
        if before is None:
            self._first[o.pci] = o
        elif any(_fell(before, o, name) for name in _EPOCH_COUNTERS):
            self._first[o.pci] = o
            self._epochs[o.pci] = o.seen
            self._before[o.pci] = o
            self._trends[o.pci] = ()  # what fell can't be subtracted from
        self._readings[o.pci] = o
        trend = self._trends.get(o.pci, ())
        if not trend or o.seen - trend[-1].seen >= _TREND_EVERY_S:
            sample = Sample(o.seen, tuple(number(o, name) for name in TREND))
            self._trends[o.pci] = (*trend[-_TREND_SAMPLES + 1 :], sample)

    def _xid(self, o: Observation, code: int) -> None:
        if o.past:
            self._past[o.pci, code] = o
            return
        self._fresh.append(o)
        if code == UNCORRECTABLE_XID:
            self._uncorrectable[o.pci] = o
        if (pid := number(o, "pid")) is not None:
            self._blames = [*self._blames[-_MOST_BLAMES + 1 :], Blame(o.seen, o.pci, code, int(pid))]
        old = self._tallies.get((o.pci, code)) or Tally(0, o.at, (), {})
        repeats = min(max(int(number(o, "repeats") or 1), 1), _MOST_REPEATS)
        by = {**old.by, o.source: old.by.get(o.source, 0) + repeats}
        told = bool(old.seen) and by[o.source] <= old.count and o.seen - old.seen[-1] <= _SAME_EVENT_S
        if told:  # the other witness of an error that is counted already
            self._tallies[o.pci, code] = replace(old, by=by)
        else:
            count = max(by[o.source], old.count + 1)
            by[o.source] = count
            seen = (*old.seen, *(o.seen for _ in range(min(count - old.count, _WINDOW_EVENTS))))[-_WINDOW_EVENTS:]
            self._tallies[o.pci, code] = Tally(count, o.at, seen, by)

    def finish(self, now: float) -> History:
        return History(
            now,
            self._boots,
            self._seq,
            tuple(self._fresh),
            self._past,
            self._readings,
            self._before,
            self._first,
            self._old.well,
            {pci: o for pci, o in self._readings.items() if self._old.well.get(pci) != _settled(o)},
            self._cards,
            self._lost,
            self._resets,
            self._alive,
            self._failed,
            self._heard,
            self._epochs,
            self._tallies,
            self._trends,
            self._uncorrectable,
            tuple(self._blames),
            dict(list(self._pods.items())[-_MOST_PIDS:]) if len(self._pods) > _MOST_PIDS else self._pods,
            self._old.workloads,
            self._old.began or now,
        )


def _fell(before: Observation, after: Observation, signal: str) -> bool:
    old, new = number(before, signal), number(after, signal)
    return old is not None and new is not None and new < old
