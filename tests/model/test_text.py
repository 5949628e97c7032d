"""Times in their one form: written for a field as it wants them, read from whoever wrote them."""

from __future__ import annotations

import math
from typing import Literal

import pytest

from agent.model.text import rfc3339, unix_s

AT = 1795694400.987654


@pytest.mark.parametrize(
    ("precision", "text"),
    [
        ("seconds", "2026-11-26T12:00:00Z"),
        ("milliseconds", "2026-11-26T12:00:00.987Z"),
        ("microseconds", "2026-11-26T12:00:00.987654Z"),
    ],
)
def test_a_time_is_written_as_precisely_as_its_field_wants_it_and_never_rounded_up(
    precision: Literal["seconds", "milliseconds", "microseconds"], text: str
) -> None:
    assert rfc3339(AT, precision) == text
    assert unix_s(text) == pytest.approx(AT, abs=1)


@pytest.mark.parametrize("at", [math.inf, -math.inf, math.nan, 1e300, -1e300, 1e12])
def test_a_time_that_no_clock_shows_is_written_all_the_same(at: float) -> None:
    assert rfc3339(at)[:4] in ("0001", "9999")


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("2026-11-26T12:00:00.987654Z", AT),
        ("2026-11-26T12:00:00.987654+00:00", AT),
        ("2026-11-26T14:00:00.987654+02:00", AT),
        ("0001-01-01T00:00:00+14:00", -62135647200.0),
        ("2026-11-26T12:00:00", None),  # nobody knows where
        ("yesterday", None),
        ("", None),
        (None, None),
        (AT, None),
        (["2026-11-26T12:00:00Z"], None),
    ],
)
def test_a_time_is_read_with_its_zone_or_not_at_all(text: object, read: float | None) -> None:
    assert unix_s(text) == read
