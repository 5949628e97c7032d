"""Calls into the driver that come back, and late: what NVML reads is judged as ever, and later."""

from __future__ import annotations

from collections.abc import Iterator

from agent.config.limits import Limits
from agent.config.source_index import GPUS
from agent.diagnosis.history import History
from agent.diagnosis.row import TABLE
from agent.model.fault import Finding

SLOW = TABLE["driver-slow"]


def find(history: History, limits: Limits) -> Iterator[Finding]:
    word = history.slow.get(GPUS) or history.alive.get(GPUS)
    if word and (history.poll_s(GPUS) or 0.0) > limits.slow_poll_s:
        yield SLOW.found(word, limits, f"{SLOW.meaning}: a poll takes over {limits.slow_poll_s:.0f} s", pci="")
