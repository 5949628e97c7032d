"""A source's process, and what it says line by line."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable

from agent.model.observation import Observation, parse_line


class Watched:
    """What a source process says."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process, self.said = process, list[Observation]()
        assert process.stdout
        os.set_blocking(process.stdout.fileno(), False)
        self._rest, self._lines = b"", list[bytes]()

    def until(self, wanted: Callable[[Observation], bool], timeout_s: float = 30.0) -> Observation:
        """The first that is wanted among what it says from now on; what it says later is not looked at."""
        assert self.process.stdout
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            while self._lines:
                self.said.append(parse_line(self._lines.pop(0), time.monotonic()))
                if wanted(self.said[-1]):
                    return self.said[-1]
            time.sleep(0.01)
            *self._lines, self._rest = (self._rest + (self.process.stdout.read() or b"")).split(b"\n")
        raise AssertionError(f"it said only: {self.said[-5:]}; standard error: {self.complaint()}")

    def polls(self, count: int) -> list[Observation]:
        """All that it says until it has polled so often again."""
        before = len(self.said)
        for _ in range(count):
            self.until(lambda seen: seen.signal == "alive")
        return self.said[before:]

    def complaint(self) -> str:
        if self.process.poll() is None or not self.process.stderr:
            return ""
        return self.process.stderr.read().decode()

    def ended(self, timeout_s: float = 30.0) -> int:
        return self.process.wait(timeout_s)
