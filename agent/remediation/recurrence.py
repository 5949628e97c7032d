"""What recurs on a card, in a slot or on the node itself, and what follows from it for the node's return. Pure.

The ledger tells the earlier incidents: those that a person dismissed and drills don't count. A card takes its history
along to another slot; a slot in which several cards broke is the slot. After a first incident the node is only held:
most of what breaks again does so within hours.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from agent.config.settings import Config, Mode, Recurrence
from agent.model.errors import MalformedError
from agent.model.names import DISMISS_ANNOTATION
from agent.model.remedy import Remedy
from agent.model.steps import On, Wait
from agent.model.text import printable, rfc3339
from agent.model.world import PermitKind, World
from agent.remediation.budget import left_for_others
from agent.remediation.case import Case, Treatment
from agent.remediation.ledger import DRILL, End, Entry, Moment, Suspect, ended_by, stands
from agent.remediation.ledger_json import load

DISMISSED = "recurrence@node"  # the word by which a person wants none of it on this node
_ENDS = f"annotation {DISMISS_ANNOTATION}={DISMISSED} ends this at once"
_FREE = "another withdrawn permit of the pool is free"
_MOST_DOUBLED = 64  # times: longer than any hold may last, whatever an annotation says
_HARDEST = 3  # level of DCGM's diagnosis: the fourth takes hours


@dataclass(frozen=True, slots=True)
class Care:
    """What follows for one incident."""

    times: int = 0  # how often the same broke before within the window
    why: str = ""  # what broke, and how often, for people
    hold_s: float = 0.0  # after its proof, before the node returns
    watch_s: float = 0.0  # after the return, with the soft taint
    replaces: bool = False  # rather than reset or rebooted again, where that can be asked for

    def level(self, configured: int) -> int:
        """Of DCGM's diagnosis: one more for each time that it came."""
        return max(configured, min(configured + self.times, _HARDEST))


def care(entries: Sequence[Entry], settings: Recurrence) -> Care:
    """For the last of them."""
    if not entries or not settings.enabled or entries[-1].rule == DRILL:
        return Care()
    *earlier, last = entries
    since = last.times[Moment.ONSET] - settings.window_s
    counted = (one for one in earlier if (one.cured or one.by is End.CARD) and one.rule != DRILL)
    lately = [one for one in counted if one.times[Moment.ENDED] >= since]
    times, what = max(_same(lately, last), key=lambda one: one[0])
    why = printable(f"{what} in {settings.window_s / 86400:g} days")
    first_s = 0.0 if last.idle else settings.first_hold_s
    if not times:
        return Care(0, why, first_s)
    return Care(
        times,
        why,
        max(first_s, min(settings.hold_s * 2.0 ** min(times - 1, _MOST_DOUBLED), settings.most_hold_s)),
        settings.watch_s,
        0 < settings.replace_after <= times,
    )


def of_incident(case: Case) -> Care:
    """Of the one that the ledger has open."""
    entries = _entries(case.world)
    return care(entries, case.config.recurrence) if entries and entries[-1].by is None else Care()


def with_replacement(case: Case, treatment: Treatment) -> Treatment:
    """The treatment, by a replacement where another reset or reboot is worth nothing any more."""
    offered = case.config.repair.offers(Remedy.REPLACE_NODE) and not treatment.idle
    return replace(treatment, replaces=True) if offered and of_incident(case).replaces else treatment


def held(case: Case) -> tuple[Wait, ...]:
    """Why a cured node keeps its taint and its permit for a while longer."""
    told, world = of_incident(case), case.world
    if not told.hold_s or case.config.mode is Mode.OBSERVE or world.held(PermitKind.WITHDRAWN) is None:
        return ()
    if world.pool_size and not left_for_others(world, case.config.budget):  # a broken GPU goes first
        return ()
    entry = _entries(world)[-1]
    if stands(entry, case.verdict) or ended_by(entry, case.verdict, world) is not End.PROOF:
        return ()
    same_boot = world.clock_s and entry.boot_s and entry.boot_id == case.verdict.boot_id
    now = entry.now(entry.boot_id, world.clock_s, 0.0) if same_boot else case.verdict.at
    proved = entry.times.get(Moment.PROVED, int(now))
    if not 0 <= now - proved < told.hold_s:  # a clock that went back holds nobody
        return ()
    return (Wait(_held(told, proved), On.PROBATION),)


def watched(case: Case) -> tuple[Wait, ...]:
    """Why a node that came back bears the soft taint for a while."""
    if case.config.mode is Mode.OBSERVE:
        return ()
    whys = _watched(_entries(case.world), case.config.recurrence, case.verdict.at)
    return tuple(Wait(why, On.PROBATION) for why in whys)


def replaced(case: Case, treatment: Treatment | None) -> tuple[Wait, ...]:
    """Why no remedy but a replacement is left."""
    if not (treatment and treatment.replaces):
        return ()
    way = "a replacement is asked for instead of another reset or reboot"
    return (Wait(f"{of_incident(case).why}: {way}; {_ENDS}"),)


def coming(world: World, config: Config) -> tuple[str, ...]:
    """What will follow once an incident is cured, for people; from then on ``held`` and ``watched`` tell of it."""
    entries = _entries(world)
    if not entries or not world.pool_size or Moment.PROVED in entries[-1].times:
        return ()
    return outlook(entries, world.dismissed, config, 0.0, left_for_others(world, config.budget))


def outlook(
    entries: Sequence[Entry], dismissed: Collection[str], config: Config, at: float, free: bool
) -> tuple[str, ...]:
    """What follows for the last of them, as far as the cluster shows it; ``at``: Unix seconds.

    ``free``: whether the pool has another withdrawn permit free.
    """
    if DISMISSED in dismissed or config.mode is Mode.OBSERVE:
        return ()
    told = care(entries, config.recurrence)
    if not entries or entries[-1].by is not None:
        return _watched(entries, config.recurrence, at)
    if not (told.hold_s and free):
        return ()
    if proved := entries[-1].times.get(Moment.PROVED):
        return (_held(told, proved),) if 0 <= at - proved < told.hold_s else ()
    hours = f"{told.hold_s / 3600:g} h more"
    return (f"{told.why}: once it is cured it stays out of service for {hours}, while {_FREE}; {_ENDS}",)


def _held(told: Care, proved: float) -> str:
    until = rfc3339(proved + told.hold_s, "seconds")
    held = f"cured, it stays out of service, with its permit, until {until} and while {_FREE}"
    return f"{told.why}: {held}; {_ENDS}"


def _watched(entries: Sequence[Entry], settings: Recurrence, at: float) -> tuple[str, ...]:
    if not entries or not entries[-1].cured:
        return ()
    told, ended = care(entries, settings), entries[-1].times[Moment.ENDED]
    if not abs(at - ended) < told.watch_s:  # by the wall clock: another boot knows no other
        return ()
    until = rfc3339(ended + told.watch_s, "seconds")
    return (f"{told.why}: back in service, it is only second choice for new pods until {until}",)


def _entries(world: World) -> tuple[Entry, ...]:
    """None where a person wants nothing of it, or nobody can read it."""
    if DISMISSED in world.dismissed:
        return ()
    try:
        return load(world.history).entries
    except MalformedError:
        return ()


def _same(lately: Sequence[Entry], last: Entry) -> Iterator[tuple[int, str]]:
    """How often the same card, slot or node broke before this time, and that in words."""
    if not last.suspects:
        times = _often((one for one in lately if not one.suspects), last)
        yield times, f"the node itself broke {_count(times)}"
    for suspect in last.suspects:
        times = _often((one for one in lately if any(_one_card(other, suspect) for other in one.suspects)), last)
        serial = f", serial {suspect.serial}" if suspect.serial else ""
        yield times, f"GPU {suspect.pci} ({suspect.uuid or 'UUID not known'}{serial}) broke {_count(times)}"
        there = (other for one in lately for other in one.suspects if other.pci == suspect.pci)
        others = {other.serial or other.uuid for other in there if not _one_card(other, suspect)}
        yield len(others), f"{len(others) + 1} cards broke in the slot of GPU {suspect.pci}"


def _count(earlier: int) -> str:
    return f"{earlier + 1} times" if earlier else "for the first time"


def _often(earlier: Iterable[Entry], last: Entry) -> int:
    return last.again + sum(1 + one.again for one in earlier)


def _one_card(one: Suspect, other: Suspect) -> bool:
    return (one.uuid != "" and one.uuid == other.uuid) or (one.serial != "" and one.serial == other.serial)
