"""The score of the policy for what breaks again, on a small trace whose answer is counted by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.config.settings import Recurrence
from tests.score.__main__ import report
from tests.score.generated import World, played
from tests.score.scoring import DAY_S, HOUR_S, Policy, Score, read, score, span

TRACE = read(Path(__file__).parent / "trace.json")
NEVER = Recurrence(enabled=False)
BASE, REPLACE_S = 0.03, DAY_S


def scored(policy: Policy, window: tuple[int, int] | None = None) -> Score:
    return score(TRACE, policy, window or span(TRACE), BASE, REPLACE_S)


def test_without_a_policy_the_relapses_are_those_of_the_trace() -> None:
    assert scored(Policy(NEVER)) == Score(returns=6, relapses=3, held_s=round(4.8 * DAY_S))


def test_a_fault_that_comes_while_the_node_is_held_is_no_relapse_and_its_hold_ends_with_it() -> None:
    told = scored(Policy(NEVER, soak_s=6 * HOUR_S))
    assert (told.returns, told.relapses) == (5, 2)
    assert told.added_s == 5 * 6 * HOUR_S + round(0.2 * DAY_S)


def test_a_replaced_node_starts_anew_with_the_fleets_rate_and_takes_its_time() -> None:
    told = scored(Policy(Recurrence(window_s=30 * DAY_S, first_hold_s=0, hold_s=0, replace_after=2)))
    assert (told.returns, told.relapses, told.replaced) == (5, 2 + BASE, 1)
    assert told.added_s == REPLACE_S


@pytest.mark.parametrize(("hours", "holds"), [(0, 0), (3, 3 + 6 + 12)])
def test_what_recurs_is_held_by_the_agents_own_policy(hours: int, holds: int) -> None:
    settings = Recurrence(window_s=30 * DAY_S, first_hold_s=0, hold_s=hours * HOUR_S, replace_after=0)
    assert scored(Policy(settings)).added_s == holds * HOUR_S


def test_hold_and_soak_begin_together_and_the_longer_one_decides() -> None:
    settings = Recurrence(window_s=30 * DAY_S, first_hold_s=0, hold_s=3 * HOUR_S, replace_after=0)
    assert scored(Policy(settings, soak_s=4 * HOUR_S)).added_s == (3 * 4 + 4 + 6 + 12) * HOUR_S


def test_a_half_remembers_what_came_before_it() -> None:
    told = scored(
        Policy(Recurrence(window_s=30 * DAY_S, first_hold_s=0, hold_s=HOUR_S, replace_after=0)), (7 * DAY_S, 50 * DAY_S)
    )
    assert (told.returns, told.relapses) == (2, 0)
    assert told.added_s == 4 * HOUR_S  # the lemon's fourth time


def test_the_report_has_the_whole_curve_and_says_what_it_assumes() -> None:
    text = "\n".join(report(TRACE, nodes=10, replace_h=0, seeds=1))
    assert "6 incidents of 2 nodes of 10" in text
    assert "A replaced node starts anew" in text
    for name in ("none", "as shipped", "the second time", "by card and slot"):
        assert any(line.startswith("|") and name in line for line in text.splitlines()), name


def test_by_card_and_slot_few_sound_nodes_are_replaced_and_relapses_fall() -> None:
    none, both = (played(rule, Recurrence(), World(nodes=200), 1) for rule in ("none", "by card and slot"))
    assert both.relapses / both.returns < 0.7 * none.relapses / none.returns
    assert both.replaced > 0
    assert both.sound <= both.replaced / 20
