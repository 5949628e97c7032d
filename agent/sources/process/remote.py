"""The sources of another container, over its unix socket: that one holds the host's privileges, this one none."""

from __future__ import annotations

import json
import selectors
import socket
import time
from collections.abc import Iterable, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

from agent.config.source_index import KERNEL_LOG, Known
from agent.model.errors import UnaskedError, UndiagnosedError
from agent.model.observation import Failure, Observation, Signal, parse_line
from agent.model.text import printable, read_json
from agent.sources.dcgm.diag_process import LONGEST_BYTES, LONGEST_S, Progress, result
from agent.sources.kubelet.pod_resources import Holders, holders
from agent.sources.kubelet.pods_api import Runs, runs
from agent.sources.process.source import SourceStatus

LONGEST_LINE_BYTES = 16 * 1024
_READ_BYTES = 64 * 1024
_BYTES_PER_S = 4 * 1024 * 1024  # what comes faster waits in the socket, and then in the sources
_AGAIN_S = 1.0
_ASK_S = 15.0
_LONGEST_ANSWER_BYTES = 2 * 1024 * 1024  # of a node full of pods it has a tenth, and it takes 30 times as much memory
_AWAY_S = 15.0  # a container that is begun anew is quicker
_QUIET_S = 60.0  # a diagnosis that runs says so every second


class Remote:
    """Keeps one connection, on which its wishes go out and lines come in; each question has one of its own."""

    def __init__(self, path: Path, names: tuple[str, ...], away_s: float = _AWAY_S) -> None:
        """``away_s``: after so many seconds without it, its sources count as unreached."""
        self._path, self._names, self._away_s = path, names, away_s
        self._connection: socket.socket | None = None
        self._due = 0.0
        self._away = time.monotonic()  # since when there is no connection, while there is none
        self._buffer = b""
        self._second, self._taken = 0.0, 0
        self._wanted: Set[str] = frozenset()
        self._known = Known()
        self._ended: Set[str] = frozenset()
        self._last_seen: dict[str, float] = {}
        self._garbage = 0
        self._wishes = 0  # sent on this connection; a status that heard fewer says nothing about the last
        self._statuses: dict[str, SourceStatus] = {}
        self._lost("its container was not reached yet")

    @property
    def names(self) -> tuple[str, ...]:
        return self._names

    @property
    def statuses(self) -> tuple[SourceStatus, ...]:
        return tuple(
            replace(status, last_seen=self._last_seen.get(name), garbage=status.garbage + self._garbage)
            for name, status in self._statuses.items()
        )

    def want(self, names: Set[str], known: Known) -> None:
        changed, self._wanted, self._known = self._wanted ^ names, names, known
        for name in sorted(changed):
            self._wish(name)

    def ended(self, names: Iterable[str]) -> bool:
        """By the other side's word since our wish reached it; without a connection nobody knows."""
        return all(name in self._ended for name in names if name in self._names)

    def turn(self, wait_s: float) -> list[Observation]:
        now = time.monotonic()
        if self._connection is None and now >= self._due:
            self._connect(now)
        if self._connection is None:
            time.sleep(max(0.0, min(wait_s, self._due - now)))
            return self._unreached(time.monotonic())
        if now - self._second >= 1.0:
            self._second, self._taken = now, 0
        if self._taken >= _BYTES_PER_S:
            time.sleep(max(0.0, self._second + 1.0 - now))
            return []
        with selectors.PollSelector() as selector:
            selector.register(self._connection, selectors.EVENT_READ)
            if not selector.select(max(0.0, wait_s)):
                return []
        return self._read(self._connection)

    def _unreached(self, now: float) -> list[Observation]:
        """One observation for each source: it can't see, once the container was away for a while."""
        if now - self._away < self._away_s:
            return []
        facts: dict[str, Any] = {"value": Failure.UNREACHED, "raw": self._why, "arrived": now}
        return [Observation(time.time(), name, Signal.FAILED, **facts) for name in self._names]

    def who_holds(self) -> Holders:
        try:
            return holders(ask(self._path, {"do": "who-holds"}))
        except OSError as error:
            raise UnaskedError(f"the container of the sources does not answer: {error}") from error

    def who_runs(self) -> Runs:
        try:
            return runs(ask(self._path, {"do": "who-runs"}))
        except OSError as error:
            raise UnaskedError(f"the container of the sources does not answer: {error}") from error

    def diagnose(self, level: int, uuids: Sequence[str], progress: Progress) -> dict[str, Any]:
        try:
            return diagnosed(self._path, level, uuids, progress)
        except OSError as error:
            raise UndiagnosedError(f"the container of the sources gives no result: {error}") from error

    def close(self) -> None:
        """The other side ends its processes when nobody is connected."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connect(self, now: float) -> None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(_AGAIN_S)
            connection.connect(str(self._path))
        except OSError as error:
            connection.close()
            self._due = now + _AGAIN_S
            self._lost(f"its container is not reached over {self._path} ({error.strerror or error})")
            return
        self._connection, self._buffer, self._wishes = connection, b"", 0
        for name in self._names:
            self._wish(name)

    def _wish(self, name: str) -> None:
        """Whether this source may run now, and with it what is known of the time before."""
        self._wishes += 1
        self._ended = frozenset()
        if self._connection is None:
            return
        wish: dict[str, Any] = {"do": "resume" if name in self._wanted else "release", "source": name}
        if name == KERNEL_LOG:
            wish |= {"boot_id": self._known.boot_id, "seq": self._known.seq}
        else:
            wish |= {"gpus": sorted(self._known.gpus)}
        try:
            self._connection.sendall(json.dumps(wish).encode() + b"\n")
        except OSError as error:
            self._hang_up(str(error))

    def _read(self, connection: socket.socket) -> list[Observation]:
        try:
            data = connection.recv(_READ_BYTES)
        except OSError as error:
            self._hang_up(str(error))
            return []
        if not data:
            self._hang_up("it ended")
            return []
        self._taken += len(data)
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        if len(self._buffer) > LONGEST_LINE_BYTES:
            self._hang_up("it sent a line without an end")
            return []
        now, seen = time.monotonic(), []
        for line in lines:
            try:
                if line.startswith(b'{"status"'):
                    self._note(**read_json(line))
                    continue
                observation = parse_line(line, now)
                if observation.source not in self._names:
                    raise ValueError("a source that was not asked for")
                seen.append(observation)
                self._last_seen[observation.source] = now
            except (ValueError, TypeError, KeyError, AttributeError):
                self._garbage += 1
        return seen

    def _note(self, status: dict[str, dict[str, Any]], heard: int) -> None:
        for name in self._names:
            if name in status:
                one = status[name]
                self._statuses[name] = SourceStatus(
                    name,
                    bool(one["running"]),
                    one["pid"] and int(one["pid"]),
                    int(one["starts"]),
                    int(one["garbage"]),
                    None,
                    printable(str(one["trouble"]))[:300],
                    bool(one["ended"]),
                )
        if heard == self._wishes:
            self._ended = frozenset(name for name, one in self._statuses.items() if one.ended) - self._wanted

    def _hang_up(self, why: str) -> None:
        self.close()
        self._away = time.monotonic()
        self._due = time.monotonic() + _AGAIN_S
        self._lost(f"the connection to its container broke: {why}")

    def _lost(self, why: str) -> None:
        self._ended, self._why = frozenset(), why
        for name in self._names:
            old = self._statuses.get(name)
            self._statuses[name] = SourceStatus(name, False, None, old.starts if old else 0, 0, None, why, False)


def ask(path: Path, question: dict[str, Any], timeout_s: float = _ASK_S) -> Any:
    """One question on a connection of its own; OSError where no answer comes that makes sense."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_s)
        connection.connect(str(path))
        connection.sendall(json.dumps(question).encode() + b"\n")
        try:
            return read_json(_line(connection, bytearray(), timeout_s, _LONGEST_ANSWER_BYTES))
        except ValueError as error:
            raise OSError("no answer that makes sense") from error


def diagnosed(path: Path, level: int, uuids: Sequence[str], progress: Progress) -> dict[str, Any]:
    """A diagnosis on a connection of its own, which hangs up when ``progress`` raises: that ends it there."""
    due = time.monotonic() + LONGEST_S[level] + _QUIET_S
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_QUIET_S)
        connection.connect(str(path))
        connection.sendall(json.dumps({"do": "diagnose", "level": level, "gpus": list(uuids)}).encode() + b"\n")
        rest = bytearray()
        while time.monotonic() < due:
            try:
                message = read_json(_line(connection, rest, _QUIET_S, LONGEST_BYTES))
                if not (isinstance(message, dict) and "elapsed_s" in message):
                    return result(message)
                progress(float(message["elapsed_s"]))
            except (ValueError, TypeError) as error:
                raise OSError("no answer that makes sense") from error
        raise OSError("it did not end in time")


def _line(connection: socket.socket, rest: bytearray, within_s: float, most_bytes: int) -> bytes:
    """The next line, or what there is of it; ``rest`` keeps what follows. OSError: not so soon, however it drips."""
    until = time.monotonic() + within_s
    while b"\n" not in rest and len(rest) < most_bytes:
        if (left_s := until - time.monotonic()) <= 0:
            raise TimeoutError(f"no whole answer within {within_s:g} s")
        connection.settimeout(left_s)
        data = connection.recv(_READ_BYTES)
        if not data:
            break
        rest += data
    line, _, after = bytes(rest).partition(b"\n")
    rest[:] = after
    return line
