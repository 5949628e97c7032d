"""When a pod that was asked to end should have ended: by our own clock, and over lives by the API server's."""

from __future__ import annotations

from typing import Any

import pytest

from agent.actions.grace import is_over
from agent.model.text import rfc3339
from tests.observe import START

ASKED = {"deletionTimestamp": rfc3339(START + 30, "seconds"), "deletionGracePeriodSeconds": 30}


@pytest.mark.parametrize("seen_s", [0, 5, 89])
def test_a_pod_that_ends_without_end_has_its_time_once_over_any_number_of_lives(seen_s: float) -> None:
    assert not is_over(ASKED, {}, seen_s, START + 89)
    assert is_over(ASKED, {}, seen_s, START + 91)
    assert is_over(ASKED, {}, 91, START + 10), "whatever the API server tells"


@pytest.mark.parametrize("seconds", [0, 600, 10**7])
def test_of_a_long_grace_ten_minutes_count_from_when_it_was_asked(seconds: int) -> None:
    asked = {"deletionTimestamp": rfc3339(START + seconds, "seconds"), "deletionGracePeriodSeconds": seconds}
    counts_s = min(seconds, 600)
    assert not is_over(asked, {}, 0, START + counts_s + 59)
    assert is_over(asked, {}, 0, START + counts_s + 61)


@pytest.mark.parametrize(
    "times",
    [
        {"deletionTimestamp": "2020-01-01T00:00:00Z"},
        {"deletionTimestamp": "9999-12-31T23:59:59Z", "deletionGracePeriodSeconds": 10**12},
        {"deletionTimestamp": "soon", "deletionGracePeriodSeconds": float("nan")},
        {"deletionTimestamp": "2020-01-01T00:00:00Z", "deletionGracePeriodSeconds": -1},
    ],
)
def test_times_that_make_no_sense_end_no_wait_early(times: dict[str, Any]) -> None:
    assert not is_over(times, {"terminationGracePeriodSeconds": 30}, 0, START)
    assert is_over(times, {"terminationGracePeriodSeconds": 30}, 700, START)
