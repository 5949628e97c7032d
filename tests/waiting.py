"""Waiting for what another thread or process does."""

from __future__ import annotations

import time
from collections.abc import Callable

LATEST_S = 150.0  # only a defect takes as long, however busy the machine


def until(true: Callable[[], object]) -> None:
    due = time.monotonic() + LATEST_S
    while not true():
        assert time.monotonic() < due
        time.sleep(0.01)
