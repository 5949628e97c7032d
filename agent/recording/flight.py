"""The flight recorder: the last minutes of what was seen and decided, in memory, and written down at a fatal onset.

It holds at most 2 MiB. Its segments are a minute long and compressed. Each tells its readings from the beginning, so
that the oldest can go. A disk that hangs or is full holds up nobody.
"""

from __future__ import annotations

import threading
import zlib
from collections import deque
from pathlib import Path

from agent.config.settings import Config
from agent.diagnosis.judge import Orders
from agent.model.fault import Verdict
from agent.model.observation import Observation
from agent.model.steps import Step
from agent.model.text import rfc3339
from agent.model.world import Local, World
from agent.recording.recording import Recorder

MOST_BYTES = 1024 * 1024  # compressed; what compresses and one segment more are within the other half
KEPT_S, SEGMENT_S = 900.0, 60.0
MOST_FILES = 4
SUFFIX = ".jsonl.gz"
_SEGMENT_BYTES = MOST_BYTES // 8
_AFTER_S = 60.0  # how long what follows from a fatal onset is written to its file too


class Segments:
    """Text in gzip members, the oldest of which are forgotten."""

    def __init__(self) -> None:
        self._head, self._closed = b"", deque[tuple[float, bytes]]()  # when each began
        self._began, self._open, self._parts = 0.0, _gzip(), list[bytes]()

    def write(self, text: str) -> None:
        if not self._head:
            self._head = _gzipped(text)
            return
        self._parts.append(self._open.compress(text.encode()))

    def close(self) -> None:
        """Nothing is written at the end: a restart is no onset."""

    def full(self, now: float) -> bool:
        return now - self._began >= SEGMENT_S or sum(map(len, self._parts)) >= _SEGMENT_BYTES

    def turn(self, now: float) -> None:
        """A new segment."""
        self._closed.append((self._began, b"".join((*self._parts, self._open.flush()))))
        self._began, self._open, self._parts = now, _gzip(), []
        while self._closed and (self.size > MOST_BYTES or now - self._closed[0][0] > KEPT_S):
            self._closed.popleft()

    @property
    def size(self) -> int:
        return sum(len(data) for _, data in self._closed) + sum(map(len, self._parts))

    def whole(self) -> tuple[bytes, ...]:
        """A recording as gzip."""
        return (self._head, *(data for _, data in self._closed), *self._parts, self._open.copy().flush())


class FlightRecorder(Recorder):
    """A recorder that keeps what came lately, and writes it to ``folder`` when a fault turns fatal."""

    def __init__(self, folder: Path, config: Config, node: str, sources: tuple[str, ...]) -> None:
        self.segments = Segments()
        self._folder, self._whole = folder, threading.RLock()
        self._fatal: frozenset[str] = frozenset()
        self._file_name, self._due = "", 0.0
        self._writes = threading.Lock()  # a disk that hangs keeps one thread, not many
        super().__init__(self.segments, config, node, sources)

    def judged(self, now: float, wall: float, seen: list[Observation], orders: Orders, verdict: Verdict) -> None:
        with self._whole:
            if self.segments.full(now):
                self.segments.turn(now)
                self.begins_anew()
            super().judged(now, wall, seen, orders, verdict)
            fatal = frozenset(fault.finding.id for fault in verdict.fatal)
            new, self._fatal = fatal - self._fatal, fatal
            if new:
                stamp = rfc3339(wall, "seconds").replace(":", "-")
                self._file_name, self._due = f"{stamp}{SUFFIX}", now + _AFTER_S
                self._keep()
            elif self._due and now >= self._due:
                self._due = 0.0
                self._keep()

    def planned(self, verdict: Verdict, world: World, local: Local, steps: tuple[Step, ...]) -> None:
        with self._whole:
            super().planned(verdict, world, local, steps)

    def _keep(self) -> None:
        if self._writes.acquire(blocking=False):
            written = (self._folder, self._file_name, self.segments.whole(), self._writes)
            threading.Thread(target=_write, args=written, daemon=True).start()


def _write(folder: Path, name: str, data: tuple[bytes, ...], writes: threading.Lock) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        new = folder / f".{name}"
        new.touch(mode=0o600)
        new.write_bytes(b"".join(data))
        new.rename(folder / name)
        for old in kept(folder)[:-MOST_FILES]:
            old.unlink()
    except OSError:
        pass  # evidence is worth no trouble of the agent's
    finally:
        writes.release()


def kept(folder: Path) -> list[Path]:
    """The files of an agent, the oldest first."""
    return sorted(folder.glob(f"[!.]*{SUFFIX}"))


def _gzip() -> zlib._Compress:
    return zlib.compressobj(wbits=31)


def _gzipped(text: str) -> bytes:
    made = _gzip()
    return made.compress(text.encode()) + made.flush()
