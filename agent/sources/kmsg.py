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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agent.model import Failure, Observation, Signal, Value, normalise_pci

_RECORD_BYTES = 16 * 1024  # /dev/kmsg answers EINVAL to a buffer smaller than its record
_FILE_PAUSE_S = 0.02  # a regular file tells nobody that it grew
_RAW_CHARS = 500

_XID = re.compile(
    r"NVRM: Xid \((?:PCI:)?([0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}(?:\.[0-7])?)([^)]*)\): (\d{1,6})\b"
)
_INSTANCE = re.compile(r"GPU-I:([0-9a-fA-F]+)(?:\s+GPU-CI:([0-9a-fA-F]+))?")
_PID = re.compile(r"\bpid='?(\d{1,10})'?")
_NAME = re.compile(r"\bname=(.*?), ")
_ACTION = re.compile(r"to 0x([0-9a-fA-F]{1,8})")
_ADDRESS = r"([0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}(?:\.[0-7])?)"
_OFF_THE_BUS = re.compile(rf"NVRM: GPU {_ADDRESS}: GPU has fallen off the bus")
_PROBE_BEGIN = re.compile(rf"NVRM: The NVIDIA GPU {_ADDRESS}")
_PROBE_LOST = "fallen off the bus and is not responding to commands"
_PROBE_RECORDS = 3  # the multi-line form may come as so many records one after the other
_ESCAPE = re.compile(rb"\\x([0-9a-fA-F]{2})")


@dataclass(frozen=True, slots=True)
class Record:
    """One kernel record: facility 0 is the kernel's own, anything else was written by user space."""

    facility: int
    seq: int
    usec: int
    text: str


def parse_record(raw: bytes) -> Record:
    """``PRIO,SEQ,USEC,FLAGS[,...];TEXT`` and continuation lines. ValueError for anything else."""
    head, found, rest = raw.partition(b";")
    fields = head.split(b",")
    if not found or len(fields) < 4:
        raise ValueError("not a kernel record")
    text = _ESCAPE.sub(lambda m: bytes([int(m[1], 16)]), rest.split(b"\n", 1)[0])
    return Record(int(fields[0]) >> 3, int(fields[1]), int(fields[2]), text.decode(errors="replace"))


class Facts:
    """Kernel text → what it states about GPUs. Remembers a multi-record form for a few records."""

    def __init__(self) -> None:
        self._address, self._left = "", 0

    def of(self, text: str) -> Iterator[tuple[Signal, str, Value, dict[str, Value]]]:
        """Signal, PCI address, value and further values; ValueError for an address that is none."""
        if xid := _XID.search(text):
            code = int(xid[3])
            yield Signal.XID, normalise_pci(xid[1]), code, _details(xid[2], text[xid.end() :], code)
            return
        if lost := _OFF_THE_BUS.search(text):
            yield Signal.LOST, normalise_pci(lost[1]), None, {}
            return
        if begin := _PROBE_BEGIN.search(text):
            self._address, self._left = normalise_pci(begin[1]), _PROBE_RECORDS
        if self._left and _PROBE_LOST in " ".join(text.replace("NVRM:", "").split()):
            yield Signal.LOST, self._address, None, {}
            self._left = 0
        elif self._left:
            self._left -= 1


def _details(instance: str, rest: str, code: int) -> dict[str, Value]:
    values: dict[str, Value] = {}
    if found := _INSTANCE.search(instance):
        values["gpu_instance"] = int(found[1], 16)
        if found[2]:
            values["compute_instance"] = int(found[2], 16)
    if found := _PID.search(rest):
        values["pid"] = int(found[1])
    if (found := _NAME.search(rest)) and found[1] != "<unknown>":
        values["name"] = found[1][:64]
    if code == 154 and (found := _ACTION.search(rest)):
        values["recovery_action"] = int(found[1], 16)
    return values


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

    def pollable(self) -> int | None:
        return None if not (self.device or self.fifo) else self._fd

    def read(self) -> list[bytes]:
        """The records that are there; empty when nothing is new."""
        try:
            data = os.read(self._fd, _RECORD_BYTES if self.device else 4 * _RECORD_BYTES)
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
        self._facts = Facts()
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
        if record.facility != 0 and not self._userspace:
            self.discarded += 1
            return seen
        try:
            facts = list(self._facts.of(record.text))
        except ValueError:
            self.malformed += 1
            return seen
        when = _wall(record.usec) if at is None else at
        past = self.backlog and self._first_time
        seen += [
            Observation(
                when, "kmsg", signal, pci, value, values, record.text[:_RAW_CHARS], self.boot_id, record.seq, past
            )
            for signal, pci, value, values in facts
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

    def heartbeat(self) -> Observation:
        counts: dict[str, Value] = {
            "malformed": self.malformed,
            "lost_records": self.lost,
            "discarded_userspace": self.discarded,
        }
        seq = -1 if self.seq is None else self.seq
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
    try:
        while True:
            try:
                _follow(options)
            except OSError as error:
                if isinstance(error, BrokenPipeError):
                    raise
                _say(_failure(options.path, error))
                time.sleep(options.heartbeat_s)
    except (BrokenPipeError, KeyboardInterrupt):
        return 0


def _follow(options: argparse.Namespace) -> None:
    """Read for ever; OSError when the log can't be read."""
    log = Log(options.path)
    boot_id = _boot_id(options.boot_id_file)
    reader = Reader(boot_id, options.after_boot_id, options.after_seq, options.accept_userspace, log.fifo)
    poller = select.poll()
    poller.register(sys.stdout.fileno(), 0)  # POLLERR comes by itself once the agent is gone
    if (fd := log.pollable()) is not None:
        poller.register(fd, select.POLLIN)
    pause_s = options.heartbeat_s if fd is not None else _FILE_PAUSE_S
    due = 0.0
    while True:
        now = time.monotonic()
        if now >= due and not reader.backlog:
            reader.boot_id = _boot_id(options.boot_id_file)
            _say(reader.heartbeat())
            due = now + options.heartbeat_s
        records = log.read()
        for raw in records:
            for observation in reader.take(raw, None if log.device else time.time()):
                _say(observation)
        if records:
            continue
        if reader.backlog:
            reader.caught_up()
            continue
        events = poller.poll(1000 * min(pause_s, max(0.0, due - time.monotonic())))
        if any(number == sys.stdout.fileno() for number, _ in events):
            raise BrokenPipeError


def _boot_id(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


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


def _say(observation: Observation) -> None:
    sys.stdout.write(observation.to_json() + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
