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
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            while self._lines:
                self.said.append(parse_line(self._lines.pop(0), time.monotonic()))
                if wanted(self.said[-1]):
                    return self.said[-1]
            time.sleep(0.01)
            self._take()
        raise AssertionError(f"it said only: {self.said[-5:]}; standard error: {self.complaint()}")

    def polls(self, count: int) -> list[Observation]:
        """All that it says until it has polled so often again."""
        before = len(self.said)
        for _ in range(count):
            self.until(lambda seen: seen.signal == "alive")
        return self.said[before:]

    def to_the_end(self) -> list[Observation]:
        """All that an ended process had said."""
        self._take()
        self.said += [parse_line(line, time.monotonic()) for line in self._lines]
        self._lines.clear()
        return self.said

    def _take(self) -> None:
        assert self.process.stdout
        *lines, self._rest = (self._rest + (self.process.stdout.read() or b"")).split(b"\n")
        self._lines += lines

    def complaint(self) -> str:
        if self.process.poll() is None or not self.process.stderr:
            return ""
        return self.process.stderr.read().decode()

    def ended(self, timeout_s: float = 30.0) -> int:
        return self.process.wait(timeout_s)
