"""What a source is in the middle of, so that a call that never returns is named while it hangs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from math import inf

from agent.model.observation import Failure, Observation, Signal

SLOW_S = 2.0  # a process that the scheduler holds back for a second is no driver that hangs


class CurrentCall:
    """Noted before each call into a library; watched by a thread of its own, because the caller can't."""

    def __init__(self, source: str = "nvml", whose: str = "the driver") -> None:
        self._source, self._whose = source, whose
        self._current = ("", "", 0.0)  # what, the GPU that it is about, since when: one value, for another thread
        self._polls_since: float | None = None

    def begins(self, what: str, pci: str = "") -> None:
        """``what`` begins, about this GPU or about none; empty: nothing that could hang."""
        self._current = (what, pci, time.monotonic())

    def goes_on(self) -> None:
        """The first of several calls that are one to whoever began it has returned."""
        what, pci, _ = self._current
        self.begins(what, pci)

    def polls(self, under_way: bool) -> None:
        """A poll begins, or is over."""
        self._polls_since = time.monotonic() if under_way else None

    def stuck(self, limit_s: float) -> tuple[str, str]:
        """What has not returned for so long, and the GPU that it is about; empty if nothing hangs."""
        what, pci, since = self._current
        return (what, pci) if what and time.monotonic() - since > limit_s else ("", "")

    def hung(self, what: str, pci: str = "") -> Observation:
        """That ``what`` has not returned, in the same words whoever finds it out."""
        sentence = f"{self._whose} does not answer: {what} has not returned"
        return Observation(time.time(), self._source, Signal.FAILED, pci, Failure.HUNG, raw=sentence)

    def watch(self, limit_s: float, stop: threading.Event, say: Callable[[Observation], None]) -> None:
        """Say, each ``limit_s``, what hangs, or that a poll takes so long. It runs while a call holds its thread."""
        while not stop.wait(limit_s / 4):
            what, pci = self.stuck(limit_s)
            polled_s = time.monotonic() - (self._polls_since or inf)
            if what:
                say(self.hung(what, pci))
            elif polled_s > limit_s:
                say(Observation(time.time(), self._source, Signal.SLOW, value=round(polled_s, 1)))
            else:
                continue
            stop.wait(limit_s * 3 / 4)
