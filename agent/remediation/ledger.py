"""The ledger: what happened to the node, incident by incident, and the sums of those for which it has no room. Pure.

It is told to people and to metrics, and what recurs in it decides how a node returns. Its times are Unix seconds.
Within a boot they go on by the boot's monotonic clock from the first of them, so that a clock that is set makes no
incident longer or shorter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from agent.model.fault import Verdict
from agent.model.remedy import Remedy
from agent.model.world import World
from agent.remediation.records import Stage

MOST_ENTRIES = 8
_MOST_NAMES = 16
OTHERS = "others"  # the rules and cards for which the sums have no room
DRILL = "drill"  # the rule, for the sums, of what was only a drill
BUCKETS_S = (1, 10, 60, 600, 3600, 86_400)


class Moment(StrEnum):
    """What an incident comes to, in this order; one that is only reported has no middle."""

    ONSET = "onset"  # the first evidence
    VERDICT = "verdict"  # it was to be withdrawn for
    PERMIT = "permit"
    TAINT = "taint"
    DRAINED = "drained"
    PROVED = "proved"  # its cure; from then on it only stays well for a while, and is checked
    ENDED = "ended"  # the node is back in service, or the fault is gone from one that was never withdrawn


class End(StrEnum):
    """Who ended it."""

    PROOF = "proof"  # the cure was proved, or it passed
    PERSON = "person"  # who dismissed it
    CARD = "card"  # another card is in the slot


_PHASES = {
    "detect": (Moment.ONSET, Moment.VERDICT),
    "wait": (Moment.VERDICT, Moment.TAINT),
    "drain": (Moment.TAINT, Moment.DRAINED),
    "repair": (Moment.DRAINED, Moment.PROVED),
    "prove": (Moment.PROVED, Moment.ENDED),
    "out": (Moment.TAINT, Moment.ENDED),
}
PHASES = tuple(_PHASES)


@dataclass(frozen=True, slots=True)
class Suspect:
    """A GPU of an incident: a card, and the slot that it was in."""

    pci: str
    uuid: str = ""
    serial: str = ""
    slot: str = ""  # as the firmware names it


@dataclass(frozen=True, slots=True)
class Repair:
    """One attempt, or the check before the return (remedy none)."""

    remedy: Remedy
    number: int
    stage: Stage
    ended_at: int = 0  # Unix seconds; 0: it has not


@dataclass(frozen=True, slots=True)
class Entry:
    """One incident: from a fatal fault, or a withdrawal for an idle one, until the node is as it should be."""

    times: Mapping[Moment, int]  # the onset always
    faults: tuple[str, ...] = ()  # ids, the worst first
    suspects: tuple[Suspect, ...] = ()
    gpus: int = 0  # of the node: they are lost while it is withdrawn
    repairs: tuple[Repair, ...] = ()
    by: End | None = None  # None: it has not ended
    collected: str = ""  # the Job that took evidence before the repair
    again: int = 0  # how often it came back after its cure, before the node was back in service
    idle: bool = False  # nothing fatal was: the node was withdrawn to reset GPUs that nobody used
    boot_id: str = ""  # when the last moment was noted
    boot_s: int = 0  # and that boot's monotonic clock then; 0: not known

    @property
    def rule(self) -> str:
        """Of the fault that it was first."""
        first = self.faults[0] if self.faults else ""
        return DRILL if first.endswith("/drill") else first.partition("@")[0]

    @property
    def cured(self) -> bool:
        """Whether it ended well, and not only because its GPU was not idle any more."""
        return self.by is End.PROOF and (Moment.PROVED in self.times or Moment.TAINT not in self.times)

    @property
    def phases(self) -> dict[str, int]:
        """How long each lasted, seconds; only those that are over."""
        times = self.times
        return {
            name: times[last] - times[first] for name, (first, last) in _PHASES.items() if {first, last} <= times.keys()
        }

    def now(self, boot_id: str, boot_s: int, wall: float) -> int:
        """Unix seconds by the boot's monotonic clock since the last moment; by the wall clock in another boot."""
        last = max(self.times.values())
        if boot_s and self.boot_s and boot_id == self.boot_id:
            return last + max(0, boot_s - self.boot_s)
        return max(last, int(wall))

    def lost_gpu_s(self, now: float) -> int:
        """GPU-seconds out of service; ``now``: Unix seconds, for one that has not ended."""
        if Moment.TAINT not in self.times:
            return 0
        return max(0, int(self.times.get(Moment.ENDED, now)) - self.times[Moment.TAINT]) * self.gpus


@dataclass(frozen=True, slots=True)
class Lasted:
    """How often a phase was seen to its end, for how long in all, and how often within each of BUCKETS_S."""

    count: int = 0
    seconds: int = 0
    within: tuple[int, ...] = (0,) * len(BUCKETS_S)

    def plus(self, seconds: int) -> Lasted:
        within = tuple(n + (seconds <= most) for n, most in zip(self.within, BUCKETS_S, strict=True))
        return Lasted(self.count + 1, self.seconds + seconds, within)


@dataclass(frozen=True, slots=True)
class Sums:
    """Of many incidents. They only grow."""

    ends: Mapping[tuple[str, End], int] = field(default_factory=dict)  # by rule
    cards: Mapping[str, int] = field(default_factory=dict)  # incidents by UUID
    lost_gpu_s: Mapping[str, int] = field(default_factory=dict)  # by rule
    lasted: Mapping[str, Lasted] = field(default_factory=dict)  # by phase

    def plus(self, entry: Entry, now: float) -> Sums:
        ends, cards, lost, lasted = Counter(self.ends), Counter(self.cards), Counter(self.lost_gpu_s), dict(self.lasted)
        if entry.by:
            ends[_room(entry.rule, {rule for rule, _ in ends}), entry.by] += 1
            for uuid in {suspect.uuid for suspect in entry.suspects if suspect.uuid}:
                cards[_room(uuid, cards)] += 1
        if out := entry.lost_gpu_s(now):
            lost[_room(entry.rule, lost)] += out
        for phase, seconds in entry.phases.items():
            lasted[phase] = lasted.get(phase, Lasted()).plus(seconds)
        return Sums(ends, cards, lost, lasted)


@dataclass(frozen=True, slots=True)
class Ledger:
    """The last incidents, oldest first, of which the last may not have ended, and the sums of those before them."""

    entries: tuple[Entry, ...] = ()
    older: Sums = field(default_factory=Sums)

    @property
    def open(self) -> Entry | None:
        last = self.entries[-1] if self.entries else None
        return last if last and last.by is None else None

    def sums(self, now: float) -> Sums:
        """Of all of them; ``now``: Unix seconds."""
        sums = self.older
        for entry in self.entries:
            sums = sums.plus(entry, now)
        return sums

    def folded(self) -> Ledger:
        """With its oldest entry in the sums."""
        return Ledger(self.entries[1:], self.older.plus(self.entries[0], 0.0))


def stands(entry: Entry, verdict: Verdict) -> bool:
    """Whether a fault of it does, be it that the node is not withdrawn for it: its GPU was not idle any more."""
    return any(key in entry.faults for fault in verdict.faults if not fault.proved for key in fault.ids)


def ended_by(entry: Entry, verdict: Verdict, world: World) -> End:
    """Whose doing it is that no fault of it stands any more."""
    if (verdict.dismissed | world.dismissed).intersection(entry.faults):
        return End.PERSON
    now = {pci: card.uuid for pci, card in verdict.cards.items()}
    changed = any(one.uuid and now.get(one.pci, one.uuid) not in ("", one.uuid) for one in entry.suspects)
    return End.CARD if changed else End.PROOF


def _room(name: str, known: Iterable[str]) -> str:
    """The name, or that of the others once there are so many."""
    names = set(known)
    return name if name in names or len(names) < _MOST_NAMES else OTHERS
