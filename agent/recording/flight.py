"""The flight recorder: the last minutes of what was seen and decided, in memory, and written down at a fatal onset.

A person can ask for it at any other time. It holds at most 2 MiB. Its segments are a minute long and compressed. Each
tells its readings, and the faults that stood, from the beginning, so that the oldest can go. A disk that hangs or is
full holds up nobody.
"""

from __future__ import annotations

import threading
import time
import zlib
from collections import deque
from contextlib import suppress
from pathlib import Path

from agent.config.settings import Config
from agent.diagnosis.judge import Orders
from agent.model.errors import NotRunningError
from agent.model.fault import Severity, Verdict
from agent.model.observation import Observation
from agent.model.steps import Step
from agent.model.text import rfc3339
from agent.model.world import Local, World
from agent.recording.recording import Recorder, as_json
from agent.remediation.records import Records
from agent.remediation.stored import dump

MOST_BYTES = 768 * 1024  # compressed; what compresses, one segment more and a copy of it are within the rest
KEPT_S, SEGMENT_S = 900.0, 60.0
MOST_FILES = 4
SUFFIX = ".jsonl.gz"
_SEGMENT_BYTES = MOST_BYTES // 8
_AFTER_S = 60.0  # how long what follows from a fatal onset is written to its file too
_ASKED, _ON_REQUEST = ".asked", f"on-request{SUFFIX}"  # one file, which pushes out none of a fatal onset's
_LOOKS_S, _ANSWERS_S = 0.5, 10.0


class Segments:
    """Text in gzip members, the oldest of which are forgotten."""

    def __init__(self) -> None:
        self._head, self._closed = b"", deque[tuple[float, bytes, bytes]]()  # when each began, and what stood then
        self._began, self._stood, self._open, self._parts = 0.0, b"", _gzip(), list[bytes]()

    def begin(self) -> None:
        """What was written so far is the head of each recording."""
        self._head, self._open, self._parts = self._ended(), _gzip(), []

    def write(self, text: str) -> None:
        if part := self._open.compress(text.encode()):
            self._parts.append(part)
            while self._closed and self.size > MOST_BYTES + _SEGMENT_BYTES:  # all in one round
                self._closed.popleft()

    def close(self) -> None:
        """Nothing is written at the end: a restart is no onset."""

    def full(self, now: float) -> bool:
        return now - self._began >= SEGMENT_S or sum(map(len, self._parts)) >= _SEGMENT_BYTES

    def turn(self, now: float, stood: str = "") -> None:
        """A new segment. ``stood`` are the lines that a recording which begins here has before it."""
        self._closed.append((self._began, self._stood, self._ended()))
        self._began, self._stood, self._open, self._parts = now, _gzipped(stood) if stood else b"", _gzip(), []
        while self._closed and (self.size > MOST_BYTES or now - self._closed[0][0] > KEPT_S):
            self._closed.popleft()

    def _ended(self) -> bytes:
        return b"".join((*self._parts, self._open.flush()))

    @property
    def size(self) -> int:
        closed = sum(len(stood) + len(data) for _, stood, data in self._closed)
        return closed + len(self._stood) + sum(map(len, self._parts))

    def whole(self) -> tuple[bytes, ...]:
        """A recording as gzip."""
        stood = self._closed[0][1] if self._closed else self._stood
        closed = (data for *_, data in self._closed)
        return (self._head, stood, *closed, *self._parts, self._open.copy().flush())


class FlightRecorder(Recorder):
    """A recorder that keeps what came lately, and writes it to ``folder`` when a fault turns fatal."""

    def __init__(self, folder: Path, config: Config, node: str, sources: tuple[str, ...]) -> None:
        self.segments = Segments()
        self._folder, self._whole = folder, threading.RLock()
        self._fatal: frozenset[str] = frozenset()
        self._last: Verdict | None = None
        self._file_name, self._due = "", 0.0
        self._writes = threading.Lock()  # a disk that hangs keeps one thread, not many
        super().__init__(self.segments, config, node, sources)
        self.segments.begin()

    def judged(self, now: float, wall: float, seen: list[Observation], orders: Orders, verdict: Verdict) -> None:
        with self._whole:
            if self.segments.full(now):
                self.segments.turn(now, self._standing(now, orders))
                self.begins_anew()
            super().judged(now, wall, seen, orders, verdict)
            self._last = verdict
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

    def answer(self) -> None:
        """From now on, whoever asks for it (``ask``). A thread of its own looks: the folder's disk may hang."""
        threading.Thread(target=self._answers, daemon=True).start()

    def _answers(self) -> None:
        asked = self._folder / _ASKED
        while True:
            with suppress(OSError):
                if asked.exists():
                    with self._whole:
                        whole = self.segments.whole()
                    _write(self._folder, _ON_REQUEST, whole)
                    asked.unlink()
            time.sleep(_LOOKS_S)

    def _standing(self, now: float, orders: Orders) -> str:
        """The faults that stand, as a line of a recording: what made them may lie further back."""
        last = self._last
        if last is None or all(fault.finding.severity is Severity.NOTICE for fault in last.standing):
            return ""
        self._orders = None
        stored = dump(last, last.kernel_seq, last.at, Records())
        return as_json({"restored": stored, "t": now, **self._new(orders)}) + "\n"

    def _keep(self) -> None:
        if self._writes.acquire(blocking=False):
            args = (self._file_name, self.segments.whole())
            try:
                threading.Thread(target=self._written, args=args, daemon=True).start()
            except RuntimeError:  # the machine has no more: evidence is worth no trouble of the agent's
                self._writes.release()

    def _written(self, name: str, data: tuple[bytes, ...]) -> None:
        try:
            _write(self._folder, name, data)
        finally:
            self._writes.release()


def _write(folder: Path, name: str, data: tuple[bytes, ...]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        new = folder / f".{name}"
        new.touch(mode=0o600)
        new.write_bytes(b"".join(data))
        new.rename(folder / name)
        for old in _of_onsets(folder)[:-MOST_FILES]:
            old.unlink()
    except OSError:
        pass  # evidence is worth no trouble of the agent's


def kept(folder: Path) -> list[Path]:
    """The files of an agent, the oldest fatal onset first, and last what a person asked for."""
    return [*_of_onsets(folder), *folder.glob(_ON_REQUEST)]


def _of_onsets(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"[0-9]*{SUFFIX}"))


def ask(folder: Path, most_s: float = _ANSWERS_S) -> None:
    """Let the agent write down what it holds now. NotRunningError where none does."""
    asked, due = folder / _ASKED, time.monotonic() + most_s
    try:
        asked.touch()
    except OSError as error:
        raise NotRunningError(f"nothing is recorded here: {folder} can't be written ({error.strerror})") from error
    while asked.exists():
        if time.monotonic() > due:
            asked.unlink(missing_ok=True)
            raise NotRunningError(f"no agent that records into {folder} answered within {most_s:g} s")
        time.sleep(_LOOKS_S / 5)


def _gzip() -> zlib._Compress:
    return zlib.compressobj(wbits=31)


def _gzipped(text: str) -> bytes:
    made = _gzip()
    return made.compress(text.encode()) + made.flush()
