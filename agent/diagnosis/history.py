"""What was seen lately, indexed for the rules: an immutable value; each round of observations makes the next one."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import inf

from agent.config.source_index import GPUS, KERNEL_LOG
from agent.model.fault import Card
from agent.model.observation import Missing, Observation, Signal, Value
from agent.model.world import Offer

SECOND_LATE_S = 90.0  # the second witness is late: DCGM is asked every 10 s, and its engine may need 45 s to answer
# Counters of which rates and shares of time are judged, kept once a minute for two hours.
TREND = (
    "hw_thermal_ns",
    "sw_thermal_ns",
    "hw_power_brake_ns",
    "ecc_corrected_volatile",
    "pcie_replays",
    "nvlink_replay",
    "nvlink_recovery",
    "nvlink_crc",
)
# Values that move with the load and that no rule but those of heat looks at.
_RESTLESS = frozenset(
    {
        "temperature_c",
        "margin_c",
        "memory_temperature_c",
        "power_w",
        "energy_j",
        "processes",
        "pods",
        "processes_left_out",
        "pcie_generation",
    }
)
UNCORRECTABLE_XID = 48
NVLINK4_XID, NVLINK5_XIDS, ACTION_XID = 74, range(144, 151), 154
SAME_EVENT_S = 5.0  # the same Xid on the same GPU from another witness within so long is the same error
SECOND_WORD_S = 2.0  # so long the driver may take for a second word that decides how grave a first one is
LOOKED_AGAIN_S = 10.0  # two polls: time enough for one more round of the judge
Said = tuple[Signal, str, Value]  # what a record says of which address


@dataclass(frozen=True, slots=True)
class Tally:
    """How often one Xid code was seen on one GPU, and when lately (monotonic seconds)."""

    count: int
    last_at: float  # Unix seconds
    times: tuple[float, ...]
    by: Mapping[str, int]  # how often each witness said so


@dataclass(frozen=True, slots=True)
class Epoch:
    """All counters of a GPU began anew at once, with persistence mode on: it was reset, or its driver was loaded."""

    word: float  # monotonic seconds of the GPU's last word before
    ended: Observation  # its last reading before
    began: float  # monotonic seconds of its first reading since


@dataclass(frozen=True, slots=True)
class Sample:
    """A GPU's counters at one time; None where a counter was not readable."""

    arrived: float
    counters: tuple[float | None, ...]  # as TREND has them


@dataclass(frozen=True, slots=True)
class Blame:
    """An Xid that named the process which made it."""

    arrived: float
    pci: str
    code: int
    pid: int
    pod: str = ""  # its UID, as a poll of that time had it: pids are used again
    place: str = ""  # the unit of the GPU at which it failed


@dataclass(frozen=True, slots=True)
class History:
    """Everything that a rule may ask."""

    now: float = 0.0  # monotonic seconds
    boots: Mapping[str, str] = field(default_factory=dict)  # the boot that each source last named
    kernel_seq: int | None = None  # in the boot that the kernel log last named
    fresh: tuple[Observation, ...] = ()  # events of this round
    past: Mapping[Said, Observation] = field(default_factory=dict)  # the kernel's records from before our first start
    readings: Mapping[str, Observation] = field(default_factory=dict)  # the last of each GPU
    before: Mapping[str, Observation] = field(default_factory=dict)  # the one before the last, if no counter fell
    first: Mapping[str, Observation] = field(default_factory=dict)  # of each GPU, or since a counter fell
    well: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)  # GPUs found well, and by which values
    suspects: Mapping[str, Observation] = field(default_factory=dict)  # the readings that rules must look at
    cards: Mapping[str, Card] = field(default_factory=dict)  # the node's GPUs, those that are gone too
    lost: Mapping[str, Observation] = field(default_factory=dict)  # GPUs that don't answer, until one reads again
    resets: Mapping[str, Observation] = field(default_factory=dict)  # GPUs that answer only that they need a reset
    witnessed: Mapping[str, Observation] = field(default_factory=dict)  # DCGM's last reading of each GPU
    incidents: Mapping[tuple[str, Value, Value], Observation] = field(default_factory=dict)  # DCGM's, that stand
    alive: Mapping[str, Observation] = field(default_factory=dict)  # the last heartbeat of each source
    failed: Mapping[str, Observation] = field(default_factory=dict)  # sources that say they can't see
    slow: Mapping[str, Observation] = field(default_factory=dict)  # the last word of polls that take long, by source
    hung: Mapping[str, Observation] = field(default_factory=dict)  # GPUs at which a call hangs, until one answers again
    heard: Mapping[str, float] = field(default_factory=dict)  # when each source last finished a poll, or first spoke
    epochs: Mapping[str, Epoch] = field(default_factory=dict)  # the last of each GPU
    fallen: Mapping[str, Collection[str]] = field(default_factory=dict)  # counters that fell in this round
    replaced: Mapping[str, str] = field(default_factory=dict)  # in this round by another card: its UUID before
    heard_of: Mapping[tuple[str, Said], float] = field(default_factory=dict)  # when each source last told each error
    trusted: str = ""  # the boot in which the driver's trace told an error that the kernel log told too
    trace_gap: float = -inf  # when the trace last lost events, monotonic seconds
    waiting: tuple[Observation, ...] = ()  # the kernel log's errors that the trusted trace has not told yet
    vetoed: tuple[Observation, ...] = ()  # those of this round that it did not tell
    loaded: Observation | None = None  # when the kernel last loaded the driver, as its log says
    tallies: Mapping[tuple[str, int], Tally] = field(default_factory=dict)
    trends: Mapping[str, tuple[Sample, ...]] = field(default_factory=dict)  # since a counter fell, oldest first
    uncorrectable: Mapping[str, Observation] = field(default_factory=dict)  # the last Xid 48 of each GPU
    detailed: Mapping[tuple[str, int], tuple[Observation, ...]] = field(default_factory=dict)
    """The last Xids of each GPU and code whose lines say more than the code, oldest first."""
    awaiting: Mapping[tuple[Value, ...], Observation] = field(default_factory=dict)
    """Xids on which a second word may come, or should have come lately."""
    blames: tuple[Blame, ...] = ()  # the last Xids with a process
    pods: Mapping[int, str] = field(default_factory=dict)  # pid → pod UID, as the last polls had it
    workloads: Mapping[str, str] = field(default_factory=dict)  # pod UID → namespace/Kind/name, as the cluster has it
    began: float = 0.0  # monotonic seconds of the first round
    expected: tuple[str, ...] = ()  # sources that should speak
    offer: Offer = field(default_factory=Offer)  # what the Node says of its GPUs

    @property
    def boot_id(self) -> str:
        """The boot that ``kernel_seq`` counts in; without the kernel log, NVML's."""
        return self.boots.get(KERNEL_LOG) or self.boots.get(GPUS, "")

    @property
    def taken_in(self) -> int | None:
        """The last kernel record whose errors are judged: a life that ends while one waits must not forget it."""
        open_ = [record.seq - 1 for record in self.waiting if record.seq is not None]
        return None if self.kernel_seq is None else min(self.kernel_seq, *open_, self.kernel_seq)

    @property
    def elsewhere(self) -> bool:
        """Whether the second witness speaks of another node's GPUs."""
        return elsewhere(self.readings, self.witnessed)

    def poll_s(self, source: str) -> float | None:
        """How long a source's poll takes: the last, or the one that is under way; None where it doesn't say."""
        alive, slow = self.alive.get(source), self.slow.get(source)
        last_ms = number(alive, "poll_ms")
        took = [last_ms / 1000] if last_ms is not None else []
        return max([*took, under_way_s(slow)] if slow else took, default=None)

    def number(self, pci: str, signal: str) -> float | None:
        """A GPU's last value; None if unsupported, unreadable or not yet read."""
        return number(self.readings.get(pci), signal)

    def without(self, found: set[str]) -> History:
        """Remembers as well the GPUs on which nothing was found: while they read the same there is nothing new.

        Counters that moved lately are looked at again, for what they did counts by the time that has passed.
        """
        well = {pci: settled(reading) for pci, reading in self.suspects.items() if pci not in found}
        flat = {pci: key for pci, key in well.items() if len({s.counters for s in self.trends.get(pci, ())}) < 2}
        return replace(self, well={**self.well, **flat}) if flat else self

    def within(self, pci: str, code: int, window_s: float) -> int:
        """How many Xids of this code this GPU had within the window."""
        tally = self.tallies.get((pci, code))
        return sum(self.now - at <= window_s for at in tally.times) if tally else 0

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
        samples = [(s.arrived, s.counters[index]) for s in self.trends.get(pci, ())[-count - 1 :]]
        return tuple(
            60 * (new - old) / (after - before)
            for (before, old), (after, new) in pairwise(samples)
            if old is not None and new is not None
        )

    def _counter(self, pci: str, counter: str, age_s: float) -> tuple[float, float] | None:
        """The youngest sample that is at least so old."""
        index = TREND.index(counter)
        now = self.readings[pci].arrived  # not the round's time: judging more often must conclude nothing else
        for sample in reversed(self.trends.get(pci, ())):
            if now - sample.arrived >= age_s:
                value = sample.counters[index]
                return None if value is None else (sample.arrived, value)
        return None

    def _latest(self, pci: str, counter: str) -> tuple[float, float] | None:
        value, reading = self.number(pci, counter), self.readings.get(pci)
        return None if value is None or reading is None else (reading.arrived, value)

    def with_details(self, xid: Observation, code: int) -> Observation:
        """An Xid that another witness told, with what the kernel's line of that moment says of it."""
        if xid.source == KERNEL_LOG:
            return xid
        lines = self.detailed.get((xid.pci, code), ())
        near = [line for line in lines if abs(line.arrived - xid.arrived) <= SAME_EVENT_S]
        return replace(xid, values={**near[-1].values, **xid.values}) if near else xid

    def times(self, pci: str, code: int) -> tuple[float, ...]:
        """When this GPU had this Xid lately, monotonic seconds."""
        tally = self.tallies.get((pci, code))
        return tally.times if tally else ()

    def uuid(self, pci: str) -> str:
        return uuid_of(self.readings.get(pci))


def elsewhere(readings: Mapping[str, Observation], witnessed: Mapping[str, Observation]) -> bool:
    """Whether some GPU of DCGM's is another card than NVML's at its address; a card that can't be told is none."""
    pairs = ((uuid_of(readings.get(pci)), uuid_of(second)) for pci, second in witnessed.items())
    return any(ours and theirs and ours != theirs for ours, theirs in pairs)


def uuid_of(reading: Observation | None) -> str:
    value = reading.values.get("uuid") if reading else None
    return value if isinstance(value, str) and not isinstance(value, Missing) else ""


def number(reading: Observation | None, signal: str) -> float | None:
    value = reading.values.get(signal) if reading else None
    return float(value) if isinstance(value, int | float) else None


def under_way_s(slow: Observation) -> float:
    """The seconds so far of a poll that takes long."""
    return float(slow.value) if isinstance(slow.value, int | float) else 0.0


def settled(reading: Observation) -> tuple[Value, ...]:
    return tuple(value for name, value in reading.values.items() if name not in _RESTLESS)
