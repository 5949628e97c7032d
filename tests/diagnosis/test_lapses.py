"""A witness that comes and goes makes no status that flaps; what it sees counts at once."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import groupby

import pytest

from agent.model.fault import Status, Verdict
from agent.model.observation import Failure, Observation, Signal
from tests.observe import GPU, OTHER, Judge, alive, ids, lost, reading

WELL = (reading(), reading(OTHER), alive())
FAILED = Observation(0, "nvml", Signal.FAILED, value=Failure.UNREADABLE, raw="NVML can't be used (NVML error 999)")
Flap = Iterator[tuple[Observation, ...]]


def one_poll_in_five_fails() -> Flap:
    chance = random.Random(1)
    while True:
        yield (FAILED,) if chance.random() < 0.2 else WELL


def begun_anew_each_minute() -> Flap:
    """And silent for a minute in between, as the pauses have it."""
    while True:
        yield from [WELL] * 12
        yield from [()] * 14


def one_gpu_that_answers_now_and_then() -> Flap:
    while True:
        yield from [WELL] * 2
        yield from [(reading(OTHER), alive())] * 14


def a_poll_each_four_minutes() -> Flap:
    while True:
        yield WELL
        yield from [()] * 48


FLAPS = (one_poll_in_five_fails, begun_anew_each_minute, one_gpu_that_answers_now_and_then, a_poll_each_four_minutes)


def runs(verdicts: list[Verdict]) -> list[Status]:
    return [status for status, _ in groupby(verdict.status for verdict in verdicts)]


@pytest.mark.parametrize("flaps", FLAPS, ids=lambda flaps: flaps.__name__)
def test_what_comes_and_goes_for_hours_changes_the_status_a_few_times_at_the_beginning(
    flaps: Callable[[], Flap],
) -> None:
    judge, said = Judge(), flaps()
    verdicts = [judge.after(5, *next(said)) for _ in range(3 * 720)]
    assert len(runs(verdicts)) <= 7, runs(verdicts)
    assert len(runs(verdicts[360:])) == 1, "after half an hour nothing changes any more"
    assert len({verdict.blind_lines for verdict in verdicts[360:]}) <= 3, "nor does what is logged"
    verdict = judge.after(5, lost(), *next(said))
    assert (verdict.status, "gpu-lost@" + GPU in ids(verdict)) == (Status.UNHEALTHY, True), "a fault counts at once"


def test_one_lapse_ends_at_once_and_many_end_when_it_was_seen_for_five_minutes() -> None:
    judge = Judge()
    judge.after(0, *WELL)
    assert judge.after(5, FAILED).status is Status.UNKNOWN
    assert judge.after(5, *WELL).status is Status.HEALTHY
    assert judge.after(5, FAILED).status is Status.UNKNOWN
    verdict = judge.each_poll(290, *WELL)
    assert verdict.blind_lines == ("nvml: NVML can't be used (NVML error 999); this comes and goes",)
    assert judge.each_poll(10, *WELL).status is Status.HEALTHY
    assert judge.after(5, FAILED).status is Status.UNKNOWN
    assert judge.after(5, *WELL).status is Status.HEALTHY, "what was is forgotten"


@pytest.mark.parametrize("pci", ["", GPU], ids=["a source", "a GPU"])
def test_however_long_something_is_silent_or_hangs_it_is_told_in_one_sentence_each(pci: str) -> None:
    """Though whatever is begun anew hangs at another call."""
    judge = Judge()
    judge.after(0, *WELL)
    verdicts = []
    for minute in range(60):
        raw = f"the driver does not answer: reading the value {minute} has not returned"
        hung = Observation(0, "nvml", Signal.FAILED, pci, Failure.HUNG, raw=raw)
        others = (hung, reading(OTHER), alive()) if pci else ()
        verdicts += [judge.after(1, *(others if second % 5 == 0 else ())) for second in range(60)]
    assert len({verdict.blind_lines for verdict in verdicts if verdict.blind}) == 1
    assert len({f.finding.message for verdict in verdicts for f in verdict.faults}) == 1
    assert len(runs(verdicts)) <= 3


def test_what_is_closed_on_purpose_counts_only_while_it_is() -> None:
    judge = Judge()
    judge.after(0, *WELL)
    aside = Observation(0, "nvml", Signal.FAILED, value=Failure.KEEP_OFF, raw="a reset")
    for _ in range(5):
        assert judge.after(5, aside).status is Status.UNKNOWN
        assert judge.after(5, *WELL).status is Status.HEALTHY
