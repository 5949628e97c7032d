"""The driver's tracepoints for Xids and SXids, in a trace instance of our own, as JSON lines on standard output.

Drivers have them from release 575 on: ``nvidia:nvidia_dev_xid`` and ``nvswitch:nvswitch_dev_sxid``, each with the
device, the code and the message (kernel-open/nvidia/nv-tracepoint.h). No process can write an event of another's.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import select
import signal
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from agent.model.observation import Failure, Observation, Signal, Value
from agent.sources.kmsg.lines import Facts
from agent.sources.process.program import kept_on, say
from agent.sources.process.storm import Storm

INSTANCE = "gpu-health-agent"  # never the global trace_pipe: whoever else reads it would lose what we read
_XIDS, _SXIDS = "nvidia/nvidia_dev_xid", "nvswitch/nvswitch_dev_sxid"
_BYTES = 64 * 1024
_RAW_CHARS = 500
# ``python3-4711    [003] .....  4342.324896: nvidia_dev_xid: Xid (PCI:0000:1b:00.0): 79, …``. A process's name has 15
# characters, so it can't hold the name of an event.
_EVENT = re.compile(
    r" *.{1,15}-\d{1,7} +(?:\([ \d-]{1,9}\) +)?\[\d{3,4}\] +(?:[^\s:]{1,8} +)?\d{1,12}\.\d{6}: "
    r"(nvidia_dev_xid|nvswitch_dev_sxid): (.*)"
)
_LOST = re.compile(r"CPU:\d{1,4} \[LOST (\d{1,12}) EVENTS\]")
# With the kernel log's mark before them the messages are those of the kernel log.
_MARK = {"nvidia_dev_xid": ("NVRM: ", Signal.XID), "nvswitch_dev_sxid": ("nvidia-nvswitch0: ", Signal.SXID)}


class Trace:
    """The events that are to be read: of tracefs, or of a FIFO that says the same. OSError where there are none."""

    def __init__(self, path: Path) -> None:
        self._instance = path / "instances" / INSTANCE if path.is_dir() else None
        if self._instance:
            self._instance.mkdir(exist_ok=True)
            (self._instance / "trace").write_text("")  # what was before our time is told already, or nobody's to judge
            self.keep_on()
        pipe = self._instance / "trace_pipe" if self._instance else path
        self.fd = os.open(pipe, (os.O_RDONLY if self._instance else os.O_RDWR) | os.O_NONBLOCK)
        self._rest = b""

    def keep_on(self) -> None:
        """The driver's events are on, of a driver that was loaded meanwhile too; the switches' where there are some."""
        for event in (_XIDS, _SXIDS) if self._instance else ():
            enable = Path(self._instance or "", "events", event, "enable")
            if event == _SXIDS and not enable.exists():
                continue
            if enable.read_text(encoding="ascii").strip() != "1":
                enable.write_text("1")

    def read(self) -> list[str]:
        """The lines that are there; empty when nothing is new."""
        try:
            data = os.read(self.fd, _BYTES)
        except BlockingIOError:
            return []
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _BYTES:
            self._rest = b""
        return [line.decode(errors="replace") for line in lines]

    def close(self) -> None:
        os.close(self.fd)
        if self._instance:
            with contextlib.suppress(OSError):
                self._instance.rmdir()


class Reader:
    """Lines of the trace → observations, and how many lines were none."""

    def __init__(self) -> None:
        self.malformed = 0

    def take(self, line: str) -> Iterator[Observation]:
        if lost := _LOST.fullmatch(line):
            yield _observe(Signal.GAP, value=int(lost[1]))
            return
        event = _EVENT.fullmatch(line)
        mark, kind = _MARK[event[1]] if event else ("", None)
        text = mark + event[2] if event else ""
        try:
            facts = [fact for fact in Facts().of(text) if fact[0] is kind]
        except ValueError:
            facts = []
        # An SXid comes as three events, of which the first says how bad it is.
        self.malformed += not event or (kind is Signal.XID and not facts)
        for signal_, pci, value, values in facts:
            yield _observe(signal_, pci, value, values, text[:_RAW_CHARS])


def _observe(
    kind: Signal, pci: str = "", value: Value = None, values: dict[str, Value] | None = None, raw: str = ""
) -> Observation:
    return Observation(time.time(), "trace", kind, pci, value, values or {}, raw)


def follow(path: Path, heartbeat_s: float) -> None:
    """Read for ever; OSError when there is nothing to be read any more."""
    trace = Trace(path)
    poller = select.poll()
    poller.register(sys.stdout.fileno(), 0)  # POLLERR comes by itself once the agent is gone
    poller.register(trace.fd, select.POLLIN)
    reader, storm, due = Reader(), Storm(), 0.0
    try:
        while True:
            lines = trace.read()
            now = time.monotonic()
            for line in lines:
                for observation in reader.take(line):
                    if storm.passes(observation, now):
                        say(observation)
            beats = now >= due
            for observation in storm.gathered(now, all_of_them=beats):
                say(observation)
            if beats:  # last: all that came before it is told
                trace.keep_on()
                say(Observation(time.time(), "trace", Signal.ALIVE, values={"malformed": reader.malformed}))
                due = now + heartbeat_s
            if not lines and any(fd == sys.stdout.fileno() for fd, _ in poller.poll(1000 * max(0.0, due - now))):
                raise BrokenPipeError
    finally:
        trace.close()


def _failure(path: Path, error: OSError) -> Observation:
    if isinstance(error, PermissionError):
        value, why = Failure.NO_PERMISSION, "give the container tracefs to write, as components/trace does"
    else:
        value, why = Failure.UNREADABLE, "the driver has these tracepoints from release 575 on, and tracefs is mounted"
    sentence = f"no tracepoint of the driver's at {path} ({error.strerror}): {why}, or set sources.trace.enabled: false"
    return Observation(time.time(), "trace", Signal.FAILED, value=value, raw=sentence)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m agent.sources.trace", description=__doc__)
    parser.add_argument("--path", type=Path, default=Path("/sys/kernel/tracing"))
    parser.add_argument("--heartbeat-s", type=float, default=1.0)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the instance goes too
    return kept_on(
        partial(follow, options.path, options.heartbeat_s), partial(_failure, options.path), options.heartbeat_s
    )
