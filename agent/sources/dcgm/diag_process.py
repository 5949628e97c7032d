"""A diagnosis as a process of its own: one at a time, bounded in time and output, none while the GPUs are let go of."""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from agent.model.errors import UndiagnosedError
from agent.model.text import printable, read_json

LONGEST_S = {1: 600.0, 2: 1800.0, 3: 7200.0, 4: 14400.0}  # several times what each level usually takes
LONGEST_BYTES = 1024 * 1024  # of a result: a test, a GPU and a message of at most 1 KiB each
_MOST_GPUS = 64
_UUID = re.compile(r"GPU-[0-9A-Za-z-]{1,60}")
_LOOK_S, _TELL_S, _READ_BYTES, _COMPLAINT_BYTES = 0.2, 1.0, 64 * 1024, 4096
_POLITE_S, _LAST_S = 5.0, 2.0  # to tell the engine that it may stop; and to be gone after SIGKILL

Progress = Callable[[float], None]


class Diagnosing:
    """Runs in the thread that asks; ``may`` and ``close`` are another's."""

    def __init__(self, command: Sequence[str]) -> None:
        """``command`` is to be completed by a level and GPUs."""
        self._command = command
        self._one = threading.Lock()
        self._stuck: subprocess.Popen[bytes] | None = None
        self.may = True  # False ends one that runs, too

    @property
    def ended(self) -> bool:
        """Whether no process of it is left, not even one that is stuck in the kernel."""
        return not self._one.locked() and (self._stuck is None or self._stuck.poll() is not None)

    def run(self, level: int, uuids: Sequence[str], progress: Progress) -> dict[str, Any]:
        """The result; ``progress`` is told the seconds so far, and what it raises ends the diagnosis."""
        if not self._one.acquire(blocking=False):
            raise UndiagnosedError("another diagnosis runs on this node")
        try:
            if self._stuck is not None and self._stuck.poll() is None:
                raise UndiagnosedError("the last diagnosis hangs in the kernel and can't be ended")
            command = [*self._command, "--level", str(level), "--gpus", ",".join(uuids)]
            return self._run(command, progress, LONGEST_S[level])
        finally:
            self._one.release()

    def close(self) -> None:
        self.may = False
        if self._one.acquire(timeout=_POLITE_S + _LAST_S + _TELL_S):
            self._one.release()

    def _run(self, command: Sequence[str], progress: Progress, longest_s: float) -> dict[str, Any]:
        self._let()
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,
            )
        except OSError as error:
            raise UndiagnosedError(f"the diagnosis can't be started: {error}") from error
        try:
            output, complaint = self._listen(process, progress, longest_s)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_LAST_S)
        finally:
            self._end(process)
        try:
            return result(read_json(output))
        except ValueError:
            last = (complaint.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
            why = f"the diagnosis ended without a result ({process.returncode}): {plain(last)}"
            raise UndiagnosedError(why) from None

    def _listen(self, process: subprocess.Popen[bytes], progress: Progress, longest_s: float) -> tuple[bytes, bytes]:
        """All that it says until its end, and the last of what it complains."""
        waited = selectors.PollSelector()
        for pipe in (process.stdout, process.stderr):
            if pipe:
                waited.register(pipe, selectors.EVENT_READ)
        began, progress_at = time.monotonic(), 0.0
        output = complaint = b""
        while process.stdout in waited.get_map():
            for key, _ in waited.select(_LOOK_S):
                data = os.read(key.fd, _READ_BYTES)
                if not data:
                    waited.unregister(key.fd)
                elif key.fileobj is process.stdout:
                    output += data
                else:
                    complaint = (complaint + data)[-_COMPLAINT_BYTES:]
            self._let()
            now = time.monotonic()
            if len(output) > LONGEST_BYTES:
                raise UndiagnosedError("the diagnosis said too much to be a result, and was ended")
            if now - began > longest_s:
                raise UndiagnosedError(f"the diagnosis did not end within {longest_s:.0f} s, and was ended")
            if now - progress_at >= _TELL_S:
                progress_at = now
                progress(now - began)
        return output, complaint

    def _let(self) -> None:
        if not self.may:
            raise UndiagnosedError("the GPUs are let go of (a reset, a driver upgrade, or no agent): no diagnosis now")

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        """First by a word on which it stops the engine's tests; one that is stuck in the kernel is left behind."""
        for number, patience_s in ((signal.SIGTERM, _POLITE_S), (signal.SIGKILL, _LAST_S)):
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(patience_s)
        self._stuck = process if process.poll() is None else None
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe:
                pipe.close()


def asked(request: dict[str, Any]) -> tuple[int, tuple[str, ...]]:
    """Level and GPUs of a request that anybody may have written; ValueError in one sentence."""
    level, gpus = request.get("level"), request.get("gpus")
    if type(level) is not int or level not in LONGEST_S:
        raise ValueError("diagnose: level must be 1, 2, 3 or 4")
    named = isinstance(gpus, list) and all(isinstance(gpu, str) and _UUID.fullmatch(gpu) for gpu in gpus)
    if not (isinstance(gpus, list) and named and 0 < len(gpus) <= _MOST_GPUS):
        raise ValueError(f"diagnose: gpus must be a list of 1 to {_MOST_GPUS} UUIDs, as GPU-…")
    return level, tuple(gpus)


def result(answer: Any) -> dict[str, Any]:
    """What a diagnosis said, if it is a result: UndiagnosedError for its reason why there is none, else ValueError."""
    if isinstance(answer, dict) and "error" in answer:
        raise UndiagnosedError(plain(str(answer["error"])))
    if not (
        isinstance(answer, dict)
        and isinstance(answer.get("passed"), bool)
        and isinstance(answer.get("results"), dict)
        and isinstance(answer.get("errors"), list)
    ):
        raise ValueError("no result of a diagnosis")
    return answer


def failures(answer: dict[str, Any]) -> str:
    """Which tests failed on which GPU, and what the engine says about each: for people, however hostile its words."""
    failed = [
        f"{test} failed on {gpu}"
        for gpu, tests in answer["results"].items()
        if isinstance(tests, dict)
        for test, one in tests.items()
        if one == "fail" and test
    ]
    skipped = answer.get("untested")
    failed += [f"{gpu} was not tested" for gpu in skipped] if isinstance(skipped, list) else []
    complaints = [
        f"{one.get('test') or 'the engine'}: {one.get('message')}"
        for one in answer["errors"]
        if isinstance(one, dict) and one.get("message")
    ]
    return plain("; ".join([*failed, *complaints]) or "nothing was tested")


def plain(text: str) -> str:
    """Printable, on one line, bounded."""
    return printable(text)[:300]
