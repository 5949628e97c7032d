"""What we see. Each source is a process that prints JSON lines; here it is started, watched and ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from math import inf

from agent.model.observation import Failure, Observation, Signal, parse_line
from agent.model.text import printable

_READ_BYTES = 64 * 1024  # a call; the pipe holds the rest back in the source
_LONGEST_LINE_BYTES = 16 * 1024
_LONGEST_PAUSE_S = 60.0
_GOOD_S = 60.0  # a process that still finishes polls after so long starts the pauses anew
_LEFT_OUT_S, _LONGEST_LEFT_OUT_S = 60.0, 600.0  # a GPU at which a process hung is tried again no sooner
_HUNG_AGAIN_S = 10.0  # at most so long the other GPUs go unread while one that hung before is tried
_STDERR_BYTES = 4096
_LAST_WORDS_S = 1.0
_UNENDING = "hangs in the kernel and can't be ended; no other one is started beside it"


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
    """One source process at a time, and beside it at most one that is stuck in the kernel.

    A process that says at which GPU it hangs is killed once, and a fresh one leaves that GPU out until no stuck one
    lives and the GPU's time is over. While two are stuck, or one that hung at no GPU, nothing is started.

    ``now`` is monotonic seconds throughout. Nothing here blocks but ``close``.
    """

    def __init__(self, name: str, argv: Callable[[Collection[str]], Sequence[str]], hung_s: float) -> None:
        """``argv`` is asked with the addresses of the GPUs to leave out."""
        self._name, self._argv, self._hung_s = name, argv, hung_s
        self._process: subprocess.Popen[bytes] | None = None
        self._stuck: list[tuple[subprocess.Popen[bytes], str]] = []  # ended by us and still in the kernel; at which GPU
        self._hung_at = ""  # the GPU at which the process hangs, by its own word
        self._left_out: dict[str, float] = {}  # GPUs, and until when each is at the least
        self._left_out_s: dict[str, float] = {}  # how long each was left out the last time
        self._replaced = False  # ended because a GPU that it leaves out is to be tried again
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
            self._trouble
            or (f"left out, for calls hung there: GPU {', '.join(self._left_out)}" if self._left_out else ""),
            process is None and not self._lives_stuck(),
        )

    def fileno(self) -> int | None:
        """The pipe to wait on; None while there is nothing to read from."""
        process = self._process
        return process.stdout.fileno() if process and process.stdout and not process.stdout.closed else None

    def tick(self, now: float) -> None:
        """Start the process when due, notice its end, end it when it hangs."""
        stuck = self._lives_stuck()
        if self._process is None:
            if len(stuck) > 1 or "" in stuck:
                self._trouble = _UNENDING
            elif now >= self._due:
                self._start(now, stuck)
            return
        code = self._process.poll()
        quiet_s = now - max(self._spoke, self._started)
        if code is not None:
            if self.fileno() is None or now - self._spoke > _LAST_WORDS_S:  # what it said last is read first
                self._ended(code, now)
        elif self._hung_at and not self._killed and quiet_s > self._patience_s(stuck):
            self._set_aside(self._process, now)
        elif quiet_s > self._hung_s:
            if not self._killed:
                self._trouble = f"said nothing for {self._hung_s:.0f} s and was ended"
                self._signal(signal.SIGKILL)
                self._killed = True
            elif quiet_s > 2 * self._hung_s:
                self._trouble = _UNENDING
        elif self._try_again(now, stuck):
            self._replaced = True
            self._signal(signal.SIGTERM)

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
        for observation in seen:
            if observation.value != Failure.HUNG:
                self._spoke = self._last_seen = now
                self._hung_at = ""
            elif observation.pci not in self._left_out:  # one that says no more than that is ended like a quiet one
                self._hung_at = observation.pci
        if any(o.signal is Signal.ALIVE for o in seen) and now - self._started > _GOOD_S:
            self._pause_s, self._trouble = 1.0, ""
        return tuple(seen)

    def close(self, timeout_s: float = 2.0) -> None:
        """End it: politely, then by force. One that is stuck in the kernel is left behind, as its status says."""
        if process := self._process:
            for number in (signal.SIGTERM, signal.SIGKILL):
                self._signal(number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout_s)
                    break
            if process.poll() is None:
                self._stuck.append((process, self._hung_at))
                if self._hung_at:
                    self._left_out.setdefault(self._hung_at, 0.0)
            self._release(process)
            self._due = 0.0  # to be started again at once, when it may
        if not self._lives_stuck():
            self._left_out = {}  # whoever closes it may cure the GPUs meanwhile

    def _lives_stuck(self) -> list[str]:
        """Where the processes that were ended and are still in the kernel hang; empty: at no GPU."""
        self._stuck = [(process, pci) for process, pci in self._stuck if process.poll() is None]
        return [pci for _, pci in self._stuck]

    def _set_aside(self, process: subprocess.Popen[bytes], now: float) -> None:
        """End it, and leave it alone if that is in vain: a fresh one reads the other GPUs at once."""
        pci = self._hung_at
        self._left_out_s[pci] = min(_LONGEST_LEFT_OUT_S, 2 * self._left_out_s.get(pci, _LEFT_OUT_S / 2))
        self._left_out[pci] = now + self._left_out_s[pci]
        self._trouble = f"hung at GPU {pci} and was ended: another process leaves that GPU out"
        self._signal(signal.SIGKILL)
        self._stuck.append((process, pci))
        self._release(process)
        self._due = now

    def _patience_s(self, stuck: list[str]) -> float:
        """How long it may hang at a GPU; beside a stuck one longer, for once it is stuck too nothing is read."""
        if stuck:
            return self._hung_s
        return min(self._hung_s / 2, _HUNG_AGAIN_S if self._hung_at in self._left_out_s else inf)

    def _try_again(self, now: float, stuck: list[str]) -> bool:
        """Whether there are GPUs whose time is over; they are left out no more."""
        over = [] if stuck else [pci for pci, until in self._left_out.items() if now >= until]
        for pci in over:
            del self._left_out[pci]
        return bool(over)

    def _start(self, now: float, stuck: list[str]) -> None:
        self._try_again(now, stuck)
        self._starts += 1
        self._started = self._spoke = now
        self._buffer, self._skipping, self._killed, self._replaced = b"", False, False, False
        self._hung_at = ""
        try:
            self._process = subprocess.Popen(
                self._argv(sorted(self._left_out)),
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
        if self._replaced:
            self._release(process)
            self._due = now
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
