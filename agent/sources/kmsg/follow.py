"""The kernel log: Xid lines and lost GPUs as JSON lines on standard output, resumed without replay or loss."""

from __future__ import annotations

import argparse
import errno
import os
import re
import select
import stat
import sys
import time
from functools import partial
from pathlib import Path

from agent.model.names import DRILL_ANNOTATION
from agent.model.observation import Failure, Observation, Signal, Value
from agent.sources.kmsg.lines import Facts, Record, parse_record
from agent.sources.nvml.pci_bus import behind
from agent.sources.process.program import kept_on, read_boot_id, say
from agent.sources.process.storm import Storm

_RECORD_BYTES = 16 * 1024  # /dev/kmsg answers EINVAL to a buffer smaller than its record
_FILE_PAUSES_S = 0.02, 0.2  # a regular file tells nobody that it grew: it is looked at less often while it doesn't
_RAW_CHARS = 500
# A drill writes its record from user space and quotes the nonce that the Node bears; the agent decides whether to
# believe it. Whoever may write to the log can write many: few between two heartbeats are passed on.
_DRILL = re.compile(rf"\b{DRILL_ANNOTATION}=([0-9a-f]{{32}})(?![0-9a-zA-Z])")
_MOST_MARKED = 8


class Log:
    """An open kernel log: the device, a regular file in the same format, or a FIFO."""

    def __init__(self, path: Path) -> None:
        self._path = path
        mode = path.stat().st_mode
        self.device, self.fifo = stat.S_ISCHR(mode), stat.S_ISFIFO(mode)
        # A FIFO opened for writing too never ends when its writers come and go.
        self._fd = os.open(path, (os.O_RDWR if self.fifo else os.O_RDONLY) | os.O_NONBLOCK)
        self._inode = os.fstat(self._fd).st_ino
        self._buffer = b""
        self.read_bytes = os.read

    def pollable(self) -> int | None:
        return None if not (self.device or self.fifo) else self._fd

    def close(self) -> None:
        os.close(self._fd)

    def read(self) -> list[bytes]:
        """The records that are there; empty when nothing is new."""
        try:
            data = self.read_bytes(self._fd, _RECORD_BYTES if self.device else 4 * _RECORD_BYTES)
        except BlockingIOError:
            return []
        except OSError as error:
            # EPIPE: our record was overwritten, the next read goes on at the oldest; the jump in SEQ says how
            # many are lost. EINVAL: a record larger than any should be.
            if error.errno in (errno.EPIPE, errno.EINVAL):
                return [b""]
            raise
        if self.device:
            return [data] if data else []
        if not data:
            self._follow()
            return []
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        if len(self._buffer) > _RECORD_BYTES:
            self._buffer = b""
        return [line for line in lines if line and not line.startswith(b" ")]

    def _follow(self) -> None:
        """A file that was replaced or cut short is read from its beginning."""
        if self.fifo:
            return
        try:
            now = self._path.stat()
        except FileNotFoundError:
            return
        if now.st_ino != self._inode:
            os.close(self._fd)
            self._fd, self._inode, self._buffer = os.open(self._path, os.O_RDONLY), now.st_ino, b""
        elif now.st_size < os.lseek(self._fd, 0, os.SEEK_CUR):
            os.lseek(self._fd, 0, os.SEEK_SET)
            self._buffer = b""


class Reader:
    """Turns records into observations; knows which are old, which are ours to believe, and what was lost."""

    def __init__(self, boot_id: str, after_boot_id: str, after_seq: int | None, userspace: bool, fifo: bool) -> None:
        self.boot_id = boot_id
        resumed = after_seq is not None and after_boot_id != "" and not fifo
        self._skip_to = after_seq if resumed and after_boot_id == boot_id else None
        self._first_time = not resumed and not fifo
        self._userspace = userspace
        self._facts = Facts(behind)
        self._marked = 0
        self.backlog = not fifo  # still reading what was there when the log was opened
        self.seq: int | None = None
        self.malformed = self.lost = self.discarded = 0

    def take(self, raw: bytes, at: float | None = None) -> list[Observation]:
        """The observations of one raw record; ``at`` is Unix seconds where the record's own time is worthless."""
        if not raw:
            return []
        try:
            record = parse_record(raw)
        except ValueError:
            self.malformed += 1
            return []
        seen = self._gap(record)
        if self._skip_to is not None and record.seq <= self._skip_to:
            return seen
        # The kernel's own record may quote anything: a process can be named so.
        quoted = _DRILL.search(record.text) if record.facility != 0 else None
        drill, known = "", self._facts
        if quoted and self._marked < _MOST_MARKED:
            self._marked += 1
            drill, known = quoted[1], Facts()  # what the kernel began to say must not be ended by others
        elif record.facility != 0 and (quoted or not self._userspace):
            self.discarded += 1
            return seen
        try:
            facts = list(known.of(record.text))
        except ValueError:
            self.malformed += 1
            return seen
        when, text = _wall(record.usec) if at is None else at, record.text[:_RAW_CHARS]
        past = self.backlog and self._first_time
        seen += [
            Observation(when, "kmsg", signal, pci, value, values, text, self.boot_id, record.seq, past, drill)
            for signal, pci, value, values in facts
            if not drill or signal is Signal.XID
        ]
        return seen

    def _gap(self, record: Record) -> list[Observation]:
        before, self.seq = self.seq, record.seq
        if before is None or record.seq <= before + 1:
            return []
        missing = record.seq - before - 1
        self.lost += missing
        return [Observation(time.time(), "kmsg", Signal.GAP, value=missing, boot_id=self.boot_id)]

    def caught_up(self) -> None:
        """Everything that was there at the opening is read."""
        if self.backlog and self._skip_to is not None and (self.seq is None or self.seq < self._skip_to):
            self._skip_to = None  # no kernel counts backwards within a boot: the position was wrong
        self.backlog = False

    @property
    def position(self) -> int | None:
        """The last record that is told, which is not to be told again; None while all of it is still to be told."""
        unread = self.backlog and self._first_time
        return None if unread or self.seq is None else max(self.seq, self._skip_to or 0)

    def heartbeat(self) -> Observation:
        counts: dict[str, Value] = {
            "malformed": self.malformed,
            "lost_records": self.lost,
            "discarded_userspace": self.discarded,
        }
        seq, self._marked = -1 if self.seq is None else self.seq, 0
        return Observation(time.time(), "kmsg", Signal.ALIVE, values=counts, boot_id=self.boot_id, seq=seq)


def _wall(usec: int) -> float:
    """A record's time since boot as Unix seconds."""
    return time.time() - (time.monotonic() - usec / 1e6)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m agent.sources.kmsg", description=__doc__)
    parser.add_argument("--path", type=Path, default=Path("/dev/kmsg"))
    parser.add_argument("--accept-userspace", action="store_true")
    parser.add_argument("--boot-id-file", type=Path, default=Path("/proc/sys/kernel/random/boot_id"))
    parser.add_argument("--after-boot-id", default="")
    parser.add_argument("--after-seq", type=int)
    parser.add_argument("--heartbeat-s", type=float, default=5.0)
    options = parser.parse_args()
    return kept_on(partial(_follow, options), partial(_failure, options.path), options.heartbeat_s)


def _follow(options: argparse.Namespace) -> None:
    """Read for ever; OSError when the log can't be read."""
    log = Log(options.path)
    boot_id = read_boot_id(options.boot_id_file)
    reader = Reader(boot_id, options.after_boot_id, options.after_seq, options.accept_userspace, log.fifo)
    try:
        _tell(log, reader, options)
    finally:  # whoever opens it again goes on from here
        log.close()
        if reader.position is not None:
            options.after_boot_id, options.after_seq = reader.boot_id, reader.position


def _tell(log: Log, reader: Reader, options: argparse.Namespace) -> None:
    poller = select.poll()
    poller.register(sys.stdout.fileno(), 0)  # POLLERR comes by itself once the agent is gone
    if (fd := log.pollable()) is not None:
        poller.register(fd, select.POLLIN)
    pause_s = options.heartbeat_s if fd is not None else _FILE_PAUSES_S[0]
    due = 0.0
    storm = Storm()
    while True:
        now = time.monotonic()
        beats = now >= due and not reader.backlog
        for observation in storm.gathered(now, all_of_them=beats):
            say(observation)
        if beats:  # last: its position says that everything up to it was told
            reader.boot_id = read_boot_id(options.boot_id_file)
            say(reader.heartbeat())
            due = now + options.heartbeat_s
        records = log.read()
        for raw in records:
            for observation in reader.take(raw, None if log.device else time.time()):
                if storm.passes(observation, now):
                    say(observation)
        if records:
            pause_s = pause_s if fd is not None else _FILE_PAUSES_S[0]
            continue
        if fd is None:
            pause_s = min(1.2 * pause_s, _FILE_PAUSES_S[1])
        if reader.backlog:
            reader.caught_up()
            continue
        pause = min(pause_s, max(0.0, due - time.monotonic()), 1.0 if storm.gathers else pause_s)
        events = poller.poll(1000 * pause)
        if any(number == sys.stdout.fileno() for number, _ in events):
            raise BrokenPipeError


def _failure(path: Path, error: OSError) -> Observation:
    denied = isinstance(error, PermissionError)
    fix = (
        "give the container the device and CAP_SYSLOG (privileged), or set sources.kmsg.enabled: false"
        if denied
        else "name the kernel log with sources.kmsg.path, or set sources.kmsg.enabled: false"
    )
    value = Failure.NO_PERMISSION if denied else Failure.UNREADABLE
    sentence = f"{path} can't be read ({error.strerror}): {fix}"
    return Observation(time.time(), "kmsg", Signal.FAILED, value=value, raw=sentence)


if __name__ == "__main__":
    sys.exit(main())
