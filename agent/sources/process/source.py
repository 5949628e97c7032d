"""What we see. Each source is a process that prints JSON lines; here it is started, watched and ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from agent.model.observation import Failure, Observation, Signal, parse_line
from agent.model.text import printable

_READ_BYTES = 64 * 1024  # a call; the pipe holds the rest back in the source
_LONGEST_LINE_BYTES = 16 * 1024
_LONGEST_PAUSE_S = 60.0
_GOOD_S = 60.0  # a process that still finishes polls after so long starts the pauses anew
_STDERR_BYTES = 4096
_LAST_WORDS_S = 1.0


@dataclass(frozen=True, slots=True)
class SourceStatus:
    name: str
    running: bool
    pid: int | None
    starts: int
    garbage: int
    last_seen: float | None  # monotonic seconds
    trouble: str
    ended: bool = True  # no process of it is left, not even one that is stuck in the kernel


class Source:
    """One source process at a time: never a second while the first still lives, even stuck in the kernel.

    ``now`` is monotonic seconds throughout. Nothing here blocks but ``close``.
    """

    def __init__(self, name: str, argv: Callable[[], Sequence[str]], hung_s: float) -> None:
        self._name, self._argv, self._hung_s = name, argv, hung_s
        self._process: subprocess.Popen[bytes] | None = None
        self._stuck: subprocess.Popen[bytes] | None = None  # ended by us, and still in the kernel
        self._buffer = b""
        self._skipping = False  # inside an overlong line
        self._starts, self._garbage = 0, 0
        self._started = self._spoke = self._due = 0.0
        self._pause_s = 1.0
        self._last_seen: float | None = None
        self._killed = False
        self._trouble = ""

    @property
    def status(self) -> SourceStatus:
        process = self._process
        return SourceStatus(
            self._name,
            process is not None and not self._killed,
            process.pid if process else None,
            self._starts,
            self._garbage,
            self._last_seen,
            self._trouble,
            process is None and (self._stuck is None or self._stuck.poll() is not None),
        )

    def fileno(self) -> int | None:
        """The pipe to wait on; None while there is nothing to read from."""
        process = self._process
        return process.stdout.fileno() if process and process.stdout and not process.stdout.closed else None

    def tick(self, now: float) -> None:
        """Start the process when due, notice its end, end it when it hangs."""
        if self._process is None:
            if self._stuck is not None and self._stuck.poll() is None:
                self._trouble = "hangs in the kernel and can't be ended; no second one is started beside it"
            elif now >= self._due:
                self._start(now)
            return
        code = self._process.poll()
        if code is not None:
            if self.fileno() is None or now - self._spoke > _LAST_WORDS_S:  # what it said last is read first
                self._ended(code, now)
        elif now - max(self._spoke, self._started) > self._hung_s:
            if not self._killed:
                self._trouble = f"said nothing for {self._hung_s:.0f} s and was ended"
                self._signal(signal.SIGKILL)
                self._killed = True
            elif now - max(self._spoke, self._started) > 2 * self._hung_s:
                self._trouble = "hangs in the kernel and can't be ended; no second one is started beside it"

    def read(self, now: float) -> tuple[Observation, ...]:
        """What it said since the last call, as far as it makes sense."""
        process = self._process
        if process is None or process.stdout is None or process.stdout.closed:
            return ()
        self._note_complaint()
        try:
            data = os.read(process.stdout.fileno(), _READ_BYTES)
        except BlockingIOError:
            return ()
        if not data:
            process.stdout.close()  # it ended or will; tick() notices
            return ()
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        if self._skipping and lines:
            lines, self._skipping = lines[1:], False
        if len(self._buffer) > _LONGEST_LINE_BYTES:
            self._garbage += not self._skipping
            self._buffer, self._skipping = b"", True
        seen = []
        for line in lines:
            try:
                if len(line) > _LONGEST_LINE_BYTES:
                    raise ValueError("too long")
                observation = parse_line(line, now)
                if observation.source != self._name:
                    raise ValueError("another source's name")
                seen.append(observation)
            except ValueError:
                self._garbage += 1
        # A source that only says that it hangs is ended like one that says nothing.
        if any(o.value != Failure.HUNG for o in seen):
            self._spoke = self._last_seen = now
        if any(o.signal is Signal.ALIVE for o in seen) and now - self._started > _GOOD_S:
            self._pause_s, self._trouble = 1.0, ""
        return tuple(seen)

    def close(self, timeout_s: float = 2.0) -> None:
        """End it: politely, then by force. One that is stuck in the kernel is left behind, as its status says."""
        process = self._process
        if process is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            self._signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout_s)
                break
        self._stuck = None if process.poll() is not None else process
        self._release(process)
        self._due = 0.0  # to be started again at once, when it may

    def _start(self, now: float) -> None:
        self._starts += 1
        self._started = self._spoke = now
        self._buffer, self._skipping, self._killed = b"", False, False
        try:
            self._process = subprocess.Popen(
                self._argv(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,  # a Ctrl-C at our terminal is ours to handle
            )
        except OSError as error:
            self._trouble = f"can't be started: {error}"
            self._later(now)
            return
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe:
                os.set_blocking(pipe.fileno(), False)

    def _ended(self, code: int, now: float) -> None:
        process = self._process
        self._note_complaint()
        if process is None:
            return
        how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        if not self._killed:
            self._trouble = f"{how}{f' ({self._trouble})' if self._trouble else ''}"[:300]
        self._release(process)
        self._later(now)

    def _later(self, now: float) -> None:
        self._due = now + self._pause_s
        self._pause_s = min(_LONGEST_PAUSE_S, 2 * self._pause_s)

    def _note_complaint(self) -> None:
        """Its last line on standard error says best why it ends; a flood of them is read and dropped."""
        process = self._process
        if process is None or process.stderr is None or process.stderr.closed:
            return
        with contextlib.suppress(BlockingIOError):
            text = os.read(process.stderr.fileno(), _STDERR_BYTES).decode(errors="replace").strip()
            if text:
                self._trouble = printable(text.splitlines()[-1])[:200]

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def _release(self, process: subprocess.Popen[bytes]) -> None:
        for pipe in (process.stdout, process.stderr):
            if pipe:
                pipe.close()
        self._process = None
