"""Histories of nodes with cards and slots, generated: bad cards, bad slots, and faults that hit anybody."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from agent.config.settings import Recurrence
from agent.remediation.ledger import MOST_ENTRIES, End, Entry, Moment, Suspect
from agent.remediation.recurrence import care
from tests.score.scoring import DAY_S, HOUR_S, WEEK_S

SLOTS = 8
RULES = ("none", "by node", "by card", "by card and slot")


@dataclass(frozen=True, slots=True)
class World:
    """Faults a card and year, and how much worse a bad one is."""

    nodes: int = 400
    days: int = 365
    yearly: float = 0.1
    worse: float = 200.0
    bad_cards: float = 0.005
    bad_slots: float = 0.002
    swapped: float = 0.3  # of the repairs of a GPU that broke before: the vendor changes the card


@dataclass(frozen=True, slots=True)
class Found:
    returns: int = 0
    relapses: int = 0
    replaced: int = 0
    sound: int = 0  # nodes that were replaced, and had neither a bad card nor a bad slot


@dataclass(slots=True)
class _Slot:
    card: str
    lemon: bool  # the card
    bad: bool  # the slot, whatever card is in it

    @property
    def broken(self) -> bool:
        return self.lemon or self.bad


class _Node:
    def __init__(self, name: str, world: World, chance: random.Random) -> None:
        self.name, self.world, self.chance, self.cards = name, world, chance, 0
        self.slots = [self._slot(chance.random() < world.bad_slots) for _ in range(SLOTS)]
        self.entries: tuple[Entry, ...] = ()

    def _slot(self, bad: bool) -> _Slot:
        self.cards += 1
        return _Slot(f"{self.name}-{self.cards}", self.chance.random() < self.world.bad_cards, bad)

    def next_fault(self) -> tuple[float, int]:
        """Seconds from now, and the slot."""
        rates = [self.world.yearly * (self.world.worse if slot.broken else 1.0) for slot in self.slots]
        wait = self.chance.expovariate(sum(rates) / (365 * DAY_S))
        return wait, self.chance.choices(range(SLOTS), rates)[0]

    def suspect(self, slot: int) -> Suspect:
        return Suspect(f"0000:{slot:02x}:00.0", f"GPU-{self.slots[slot].card}")

    def swaps(self, slot: int) -> None:
        self.slots[slot] = self._slot(self.slots[slot].bad)


def played(rule: str, settings: Recurrence, world: World, seed: int) -> Found:
    """A year in which ``rule`` says when a node is replaced."""
    found, chance = Found(), random.Random(seed)
    for number in range(world.nodes):
        for relapsed, replaced, sound in _lived(_Node(str(number), world, chance), rule, settings, world, chance):
            found = replace(
                found,
                returns=found.returns + 1,
                relapses=found.relapses + relapsed,
                replaced=found.replaced + replaced,
                sound=found.sound + sound,
            )
    return found


def _lived(
    node: _Node, rule: str, settings: Recurrence, world: World, chance: random.Random
) -> Iterator[tuple[bool, bool, bool]]:
    """For each return: whether a fault followed within a week, whether the node was replaced, and a sound one."""
    at, last = 0.0, None
    while True:
        wait, slot = node.next_fault()
        at += wait
        if last is not None:
            yield wait <= WEEK_S, *last
        if at >= world.days * DAY_S:
            return
        suspect = node.suspect(slot)
        swaps = any(suspect in one.suspects for one in node.entries) and chance.random() < world.swapped
        times = dict.fromkeys((Moment.ONSET, Moment.TAINT), int(at))
        entry = Entry(times, ("xid-95@",), _seen(rule, suspect))
        told = care((*node.entries, entry), settings)
        if rule != "none" and told.replaces:
            last = True, not any(one.broken for one in node.slots)
            node = _Node(f"{node.name}+", world, chance)
            continue
        by, over = (End.CARD if swaps else End.PROOF), int(at) + HOUR_S
        ended = replace(entry, times={**times, Moment.PROVED: over, Moment.ENDED: over}, by=by)
        node.entries = (*node.entries, ended)[-MOST_ENTRIES:]
        if swaps:
            node.swaps(slot)
        last = False, False


def _seen(rule: str, suspect: Suspect) -> tuple[Suspect, ...]:
    """What the rule goes by: nothing but the node, the card wherever it is, or both."""
    if rule == "by node":
        return ()
    return (replace(suspect, pci=suspect.uuid),) if rule == "by card" else (suspect,)
