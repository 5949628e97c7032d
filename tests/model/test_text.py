"""Times and JSON in their one form: written for a field as it wants them, read from whoever wrote them."""

from __future__ import annotations

import json
import math
from typing import Any, Literal

import pytest

from agent.model.observation import Missing, Observation, Signal, parse_line
from agent.model.text import read_json, rfc3339, unix_s

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


HOSTILE_JSON: dict[str, str | bytes] = {
    "a million lists": "[" * 1_000_000,
    "lists that end": "[" * 100 + "]" * 100,
    "objects": '{"a":' * 100_000,
    "a number of 5,000 digits": "1" * 5000,
    "a number that no float holds": f"[{10**400}]",
    "an endless number": "1e999",
    "no number": "NaN",
    "minus infinity": "-Infinity",
    "half a character": r'"\ud800"',
    "the other half": r'{"\uDFFF": 1}',
    "no UTF-8": b'"\xff"',
    "nothing": "",
}


@pytest.mark.parametrize("what", HOSTILE_JSON)
def test_json_that_could_end_a_process_is_no_json(what: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        read_json(HOSTILE_JSON[what])


def test_all_that_we_write_is_read_as_it_was() -> None:
    value: dict[str, Any] = {"a": [2**64, -(2**64), 1.5, 1e-12, True, None, "\U0001f600 [[[", {"b": [[[]]]}]}
    assert read_json(json.dumps(value)) == read_json(json.dumps(value).encode()) == value
    assert read_json("[" * 60 + "]" * 60) == json.loads("[" * 60 + "]" * 60)


@pytest.mark.parametrize("source", ["nvml", "dcgm"])
def test_a_value_that_is_no_number_costs_itself_and_no_line(source: str) -> None:
    odd = {"power_w": math.nan, "energy_j": math.inf, "margin_c": -math.inf, "pcie_replays": 2**64 + 1}
    line = Observation(AT, source, Signal.READING, "0000:1b:00.0", values={**odd, "temperature_c": 44}).to_json()
    assert parse_line(line, 0).values == {**dict.fromkeys(odd, Missing.UNREADABLE), "temperature_c": 44}
