"""Waiting for what another thread or process does: bounded by a time that only a defect takes."""

from __future__ import annotations

import time
from collections.abc import Callable


def until(true: Callable[[], object], timeout_s: float) -> None:
    due = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < due
        time.sleep(0.01)
