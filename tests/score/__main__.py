"""``make score-policy TRACE=…``: the policy is fitted on the first half of a trace, and published on the second.

As Markdown. What the model assumes is printed with it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from agent.config.settings import Recurrence
from tests.score.generated import RULES, World, played
from tests.score.scoring import DAY_S, HOUR_S, WEEK_S, Histories, Policy, Score, read, score, span

_HOURS = (1, 2, 4, 6, 8, 12, 18)
_CAPS = (0.01, 0.02, 0.04, 0.06, 0.08, 0.10)
_SOAK_S = 600  # as shipped
_ASSUMES = """\
The trace knows nodes, times and classes of faults, and no cards: here each fault is the node's own. Assumed is:

- A fault comes when it came, whether or not the node is in service. While a node is held it is no relapse.
- A replaced node starts anew: its later faults in the trace are left out, and its one return counts with the fleet's
  rate, {base:.1%} a week.
- A replacement takes {replace_h} h longer than the repair in whose place it comes.
- Added hours are those beyond the trace's own, as a share of its hours in repair. The hold and the soak begin with the
  trace's return, and the longer of the two decides; the pool always has another permit free.

Each half: how many returns are followed by another fault within seven days, at how many added hours.
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.score", description=__doc__)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--nodes", type=int, default=400, help="of the fleet: the trace names only those that broke")
    parser.add_argument("--replace-h", type=int, default=24)
    arguments = parser.parse_args()
    print("\n".join(report(read(arguments.trace), arguments.nodes, arguments.replace_h)))
    return 0


def report(histories: Histories, nodes: int, replace_h: int, seeds: int = 10) -> Iterator[str]:
    first, last = span(histories)
    half = (first + last) // 2
    incidents = sum(map(len, histories.values()))
    base = incidents / (nodes * (last - first) / WEEK_S)
    halves = (first, half), (half, last)

    def on(policy: Policy, part: int) -> Score:
        return score(histories, policy, halves[part], base, replace_h * HOUR_S)

    yield f"{incidents} incidents of {len(histories)} nodes of {nodes}, {last / 86400:.0f} days.\n"
    yield _ASSUMES.format(base=base, replace_h=replace_h)
    yield "| held the first time | again | replaced | at most | first half | second half | nodes replaced |"
    yield "|---|---|---|---|---|---|---|"
    never = Recurrence(enabled=False)
    named = [(Policy(never), "none")]
    named += [(Policy(never, hours * HOUR_S), "") for hours in (1, 2, 4, 6, 8, 12, 24)]
    named += [
        (Policy(Recurrence(first_hold_s=0), _SOAK_S), "`first_hold_s: 0`"),
        (Policy(Recurrence(replace_after=0), _SOAK_S), "`replace_after: 0`"),
        (Policy(Recurrence(), _SOAK_S), "as shipped"),
    ]
    for policy, name in named:
        yield _row(policy, name, on(policy, 0), on(policy, 1))
    for after in (0, 2, 1):
        tried = [(policy, on(policy, 0)) for policy in policies(after)]
        for cap in _CAPS:
            if fitted := _fitted(tried, cap):
                policy, one = fitted
                yield _row(policy, f"{cap:.0%}", one, on(policy, 1))
    yield f"\nOn generated histories: {seeds} years of 400 nodes, 1 card in 200 and 1 slot in 500 bad.\n"
    yield "| a node is replaced by what recurs | relapse | replaced | of these without a bad card or slot |"
    yield "|---|---|---|---|"
    for rule in RULES:
        found = [played(rule, Recurrence(), World(), seed) for seed in range(seeds)]
        returns, replaced = sum(one.returns for one in found), sum(one.replaced for one in found)
        relapse = sum(one.relapses for one in found) / max(1, returns)
        yield f"| {rule} | {relapse:.1%} | {replaced} | {sum(one.sound for one in found)} |"


def policies(after: int) -> Iterator[Policy]:
    """All that are tried: how long a node is held the first time and again, and what is remembered."""
    for first_h, again_h, days in product(_HOURS, (0, 6, 8, 12, 18), (14, 30, 60)):
        if again_h == 0 or again_h >= first_h:
            settings = Recurrence(
                window_s=days * DAY_S, first_hold_s=first_h * HOUR_S, hold_s=again_h * HOUR_S, replace_after=after
            )
            yield Policy(settings, _SOAK_S)


def _fitted(tried: list[tuple[Policy, Score]], cap: float) -> tuple[Policy, Score] | None:
    within = [one for one in tried if one[1].added <= cap]
    return min(within, key=lambda one: (one[1].relapse, one[1].added), default=None)


def _row(policy: Policy, name: str, one: Score, other: Score) -> str:
    settings, days = policy.settings, policy.settings.window_s / DAY_S
    first, again, last = policy.soak_s / HOUR_S, "", ""
    if settings.enabled:
        first = max(policy.soak_s, settings.first_hold_s) / HOUR_S
        hours = f"{settings.hold_s / HOUR_S:g} h" if settings.hold_s else "as long"
        again = f"{hours}, within {days:g} days"
        last = {0: "", 1: "the second time", 2: "the third time"}[settings.replace_after]
    cells = (f"{half.relapse:.1%} at {half.added:.1%}" for half in (one, other))
    return f"| {first:.2g} h | {again} | {last} | {name} | {' | '.join(cells)} | {other.replaced} |"


if __name__ == "__main__":
    raise SystemExit(main())
