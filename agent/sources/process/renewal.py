"""When the container of the sources ends to be made anew: only a new one gets the driver's files injected."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterable
from pathlib import Path

from agent.config.source_index import GPUS
from agent.model.observation import Failure, Observation

_RENEW = (Failure.NO_LIBRARY, Failure.LIBRARY_MISMATCH, Failure.NO_PERMISSION)
_RENEW_S, _LONGEST_RENEW_S = 120.0, 3600.0
_MOST_TIMES = 10


class Renewal:
    """When this container should end because its driver was never injected, or was taken from it.

    Each time the wait doubles, as the file beside the socket counts: the kernel log's source lives here too. The other
    container may be hostile, and where it may write to that folder it may put anything there in the file's place.
    """

    def __init__(self, counted: Path, first_s: float = _RENEW_S) -> None:
        self._counted, self._first_s = counted, first_s
        self._since, self._well = 0.0, False

    def due(self, seen: Iterable[Observation]) -> bool:
        for observation in seen:
            if observation.source != GPUS:
                continue
            if observation.value in _RENEW:
                self._since, self._well = self._since or time.monotonic(), False
            elif not self._well:
                self._since, self._well = 0.0, True
                self._forget()
        if not self._since:
            return False
        times = self._times()
        if time.monotonic() - self._since < min(_LONGEST_RENEW_S, self._first_s * 2**times):
            return False
        self._count(times + 1)
        return True

    def _times(self) -> int:
        """How often it ended so far, as the file counts; 0 where that is not our own.

        It follows no link, and reads nothing but a plain file.
        """
        try:
            file = os.open(self._counted, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return 0
        try:
            about = os.fstat(file)
            ours = stat.S_ISREG(about.st_mode) and about.st_uid == os.geteuid() and about.st_nlink == 1
            return min(_MOST_TIMES, max(0, int(os.read(file, 8)))) if ours else 0
        except (OSError, ValueError):
            return 0
        finally:
            os.close(file)

    def _count(self, times: int) -> None:
        """Write a new file: whatever was there in its place is not written to."""
        self._forget()
        with contextlib.suppress(OSError):
            file = os.open(self._counted, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with os.fdopen(file, "w", encoding="ascii") as fresh:
                fresh.write(str(times))

    def _forget(self) -> None:
        with contextlib.suppress(OSError):
            self._counted.unlink()
