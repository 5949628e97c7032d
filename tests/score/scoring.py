"""A policy played over the histories of nodes: how many returns are followed by another fault, and what it costs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from agent.config.settings import Recurrence
from agent.remediation.ledger import MOST_ENTRIES, End, Entry, Moment, Suspect
from agent.remediation.recurrence import care

HOUR_S, DAY_S = 3600, 86_400
WEEK_S = 7 * DAY_S


@dataclass(frozen=True, slots=True)
class Incident:
    """As a trace has it: from the fault to the return."""

    began: int  # seconds
    ended: int
    suspects: tuple[Suspect, ...] = ()
    rule: str = "fault"
    by: End = End.PROOF


Histories = Mapping[str, tuple[Incident, ...]]  # by node, in order


@dataclass(frozen=True, slots=True)
class Policy:
    """The agent's own, and its soak. Both begin with the proof of a cure, which the trace has as the end."""

    settings: Recurrence
    soak_s: int = 0


@dataclass(frozen=True, slots=True)
class Score:
    returns: int = 0
    relapses: float = 0.0  # of the returns: another fault within seven days
    held_s: int = 0  # in repair, as the trace has it
    added_s: int = 0  # out of service beyond that
    replaced: int = 0

    @property
    def relapse(self) -> float:
        return self.relapses / max(1, self.returns)

    @property
    def added(self) -> float:
        return self.added_s / max(1, self.held_s)


def read(path: Path) -> Histories:
    """A list of events: ``node_id``, ``event_time`` in days, ``event_type`` fault_start or _end, ``fault_type``."""
    open_: dict[str, tuple[int, str]] = {}
    found: dict[str, list[Incident]] = {}
    for event in sorted(json.loads(path.read_text()), key=lambda one: one["event_time"]):
        node, at = event["node_id"], round(event["event_time"] * DAY_S)
        if event["event_type"] == "fault_start":
            rule = str((event.get("fault_type") or {}).get("Class", "fault"))
            open_.setdefault(node, (at, rule))
        elif node in open_:
            began, rule = open_.pop(node)
            found.setdefault(node, []).append(Incident(began, at, rule=rule))
    return {node: tuple(incidents) for node, incidents in found.items()}


def span(histories: Histories) -> tuple[int, int]:
    ends = [one.ended for incidents in histories.values() for one in incidents]
    return 0, max(ends) + 1


def score(histories: Histories, policy: Policy, window: tuple[int, int], base: float, replace_s: int) -> Score:
    """Of the incidents that began in the window; those before it are remembered.

    ``base``: how many of a hundred nodes fault in a week, for a node that was replaced; ``replace_s``: how much longer
    than its repair a replacement takes.
    """
    whole = Score()
    for incidents in histories.values():
        whole = _node(whole, incidents, policy, window, base, replace_s)
    return whole


def _node(
    so_far: Score, incidents: Iterable[Incident], policy: Policy, window: tuple[int, int], base: float, replace_s: int
) -> Score:
    entries: tuple[Entry, ...] = ()
    until, counts, added = -WEEK_S, False, 0  # the last return
    for one in incidents:
        inside = window[0] <= one.began < window[1]
        so_far = replace(so_far, held_s=so_far.held_s + (one.ended - one.began) * inside)
        if entries and one.began < until:  # it came back while it was held: the same incident, and no return
            before = entries[-1]
            times = {**before.times, Moment.PROVED: one.ended, Moment.ENDED: one.ended}
            entries = (*entries[:-1], replace(before, times=times, again=before.again + 1))
            back = until - one.began
            so_far = replace(
                so_far, returns=so_far.returns - counts, added_s=so_far.added_s - min(added, back) * counts
            )
        else:
            if counts and one.began - until <= WEEK_S:
                so_far = replace(so_far, relapses=so_far.relapses + 1)
            times = {
                Moment.ONSET: one.began,
                Moment.TAINT: one.began,
                Moment.PROVED: one.ended,
                Moment.ENDED: one.ended,
            }
            entries = (*entries, Entry(times, (f"{one.rule}@",), one.suspects, by=one.by))[-MOST_ENTRIES:]
        told = care(entries, policy.settings)
        if told.replaces:
            new = Score(1, base, 0, replace_s, 1) if inside else Score()
            return _sum(so_far, new)
        counts, added = inside, max(policy.soak_s, round(told.hold_s))
        until = one.ended + added
        so_far = _sum(so_far, Score(1, 0.0, 0, added)) if inside else so_far
    return so_far


def _sum(one: Score, other: Score) -> Score:
    return Score(
        one.returns + other.returns,
        one.relapses + other.relapses,
        one.held_s + other.held_s,
        one.added_s + other.added_s,
        one.replaced + other.replaced,
    )
