"""The exploration in small: ``make explore`` does the same for hours."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.exploration.fleet import Fleet
from tests.exploration.promises import KNOWN as KNOWN_PROMISES
from tests.exploration.promises import BrokenError
from tests.exploration.trouble import BORNE, TROUBLES
from tests.exploration.trouble import KNOWN as KNOWN_KINDS

COMMAND = (sys.executable, "-m", "tests.exploration", "--count", "1", "--tell")


def known(why: str, *values: object) -> object:
    """The product does not keep it yet. Once it does the test passes, and its row goes; a seed that no longer shows
    what still fails gives way to another."""
    return pytest.param(
        *values, marks=pytest.mark.xfail(raises=BrokenError, strict=True, reason=why), id=str(values[0])
    )


@pytest.mark.parametrize("seed", [1, 2, 5, 6, 8])
def test_whatever_comes_to_a_fleet_every_promise_holds(seed: int) -> None:
    Fleet(seed, BORNE).explore()


@pytest.mark.parametrize(
    ("kinds", "promise", "seed"),
    [
        *(known(why, kind, "", seed) for kind, (why, seed) in KNOWN_KINDS.items()),
        *(known(why, kinds, promise, seed) for promise, (why, kinds, seed) in KNOWN_PROMISES.items()),
    ],
)
def test_a_fleet_bears_each_kind_of_trouble_and_keeps_each_promise(kinds: str, promise: str, seed: int) -> None:
    Fleet(seed, tuple(kinds.split(",")), known={*KNOWN_PROMISES} - {promise}).explore()


def test_every_kind_of_trouble_comes_but_what_is_known_to_break_the_fleet() -> None:
    assert {*BORNE} | {*KNOWN_KINDS} == {*TROUBLES}


def test_a_seed_goes_the_same_way_in_every_process() -> None:
    """Whoever finds something can replay it alone."""
    told = {
        subprocess.run(
            (*COMMAND, "--seed", "6"),
            env={**os.environ, "PYTHONHASHSEED": number},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for number in ("1", "2")
    }
    assert len(told) == 1
    assert "1 schedules, " in told.pop()
