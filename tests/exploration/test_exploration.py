"""The exploration in small: ``make explore`` does the same for hours."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.exploration.fleet import Fleet
from tests.exploration.trouble import TROUBLES

COMMAND = (sys.executable, "-m", "tests.exploration", "--count", "1", "--tell")


@pytest.mark.parametrize("seed", [1, 2, 5, 6, 8])
def test_whatever_comes_to_a_fleet_every_promise_holds(seed: int) -> None:
    Fleet(seed, (*TROUBLES,)).explore()


def test_however_a_pools_selector_is_written_it_has_one_budget() -> None:
    Fleet(1, ("rewritten-selector", "fault")).explore()


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
