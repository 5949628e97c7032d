"""A kernel log as people paste it: dmesg, journalctl, syslog and others, line by line, in every form of their time."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from agent.model.text import read_json
from agent.sources.kmsg.lines import names, parse_record, speaks

_LINE_CHARS = 16 * 1024  # no record of the kernel's is longer, nor a journal's line about one
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_NO_YEAR = 1972  # of a time without one: it has a February 29
_HALF_A_YEAR_S, _MOST_YEARS = 182 * 86400.0, 20
_PAINT = re.compile(r"\x1b\[[0-9;]*[mK]")
# What a mail, a list, grep, a container's log and a command on many hosts put before a line.
_BEFORE = re.compile(
    r"(?:\s*[>*`|-](?=[\s\[<`>*|N]) ?)+"
    r"|(?:[\w./-]{1,255}:)?(?:\d{1,7}:)?(?=\[|<\d|[A-Z][a-z]{2} +\d|\d{4}-\d\d-|NVRM: )"
    r"|[\w./-]{1,255}(?::| +\|) (?=\[ *\d{1,12}\.\d)"
)
_NEXT = re.compile(r"(?<=[\w.)])\s+(?=\[ *\d{1,12}\.\d{6}\] (?:NVRM: |nvidia))")  # where the ends of lines got lost
_DEVICE = re.compile(rb"\d+,\d+,\d+,[^;]*;")  # as /dev/kmsg has it
_FACILITIES = "kern|user|mail|daemon|auth|syslog|lpr|news|uucp|cron|authpriv|ftp|local[0-7]"
# dmesg -x, Talos and /proc/kmsg begin with who said it.
_WHO = re.compile(
    rf"\s*(?:<(\d{{1,3}})>(?:1 )?)?\s*(?:\S{{1,255}}: (?=kern|user))?(?:({_FACILITIES})\s*:\s*[a-z]+\s*:\s*)?"
)
_DAY = r"(?:\S{2,12} )?"  # the week's, in any language
_DELTA = r"(?:\s*<[^>\]]{0,30}>)?"  # dmesg -d
_STAMPS = tuple(
    re.compile(form)
    for form in (
        rf"\[\s*(?P<boot>\d{{1,12}}\.\d+){_DELTA}\]",
        r"\[\s*<?\s*\+?(?P<since>\d{1,12}\.\d+)>?\]",  # dmesg -H, --time-format delta
        rf"\[?{_DAY}(?P<iso>\d{{4}}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d)?)"
        r"(?: [A-Z]{3,4}(?=\s))?\]?",
        rf"\[{_DAY}(?P<month>\S{{2,9}})\s+(?P<day>\d+) (?P<clock>\d\d:\d\d:\d\d) (?P<year>\d{{4}}){_DELTA}\]",  # -T
        r"\[(?P<month>\D{2,9}?)\s?(?P<day>\d+) (?P<clock>\d\d:\d\d)\]",  # dmesg -H, where the minute is another
        r"(?P<month>[A-Z][a-z]{2})\s+(?P<day>\d{1,2}) (?:(?P<year>\d{4}) )?(?P<clock>\d\d:\d\d:\d\d(?:\.\d+)?)"
        r"(?=\s)",  # syslog, journalctl
        r"(?P<unix>\d{9,10}\.\d+)(?=\s)",
        r"\[[^\[\]]{2,40}\d\d:\d\d[^\[\]]{0,20}\]",  # a time in words that are not known
    )
)
_CALLER = re.compile(r"\s*\[\s*[TC]\d+\]")
# The kernel's name before its words, as journalctl, syslog and RFC 5424 have it, with the host's or without.
_KERNEL = re.compile(r"\s*(?:[^\s:\[\]]{1,255} )?kernel(?:\[\d+\])?(?:: ?| (?:\S+ ){3})")
_HOST = re.compile(r"\s*[^\s:\[\]]{1,255} (?=NVRM: |nvidia-nvswitch\d+: )")


_FIELD = re.compile(r"([A-Z_][A-Z0-9_]{0,63})(?:=(.*))?$")
_LENGTH = 8  # bytes before a field's text that has more than one line, or is no text


def exported(lines: Iterable[str]) -> Iterator[str]:
    """The entries of ``journalctl -o export`` as ``-o json`` has them."""
    entry, name = dict[str, str](), ""  # and the field whose text goes on
    for raw in lines:
        line = raw.rstrip("\n")
        field = _FIELD.match(line)
        if not line:
            yield json.dumps(entry)
            entry, name = {}, ""
        elif field:
            name = "" if field[2] is not None else field[1]
            entry[field[1]] = field[2] or ""
        elif name:
            entry[name] = f"{entry[name]}\n{line}"[:_LINE_CHARS] if entry[name] else line[_LENGTH:]
    yield json.dumps(entry)


@dataclass(frozen=True, slots=True)
class Pasted:
    """One record: seconds by the log's own clock, and what the kernel, or somebody else, said."""

    at: float
    text: str
    kernel: bool


def _under(text: str, words: str) -> bool:
    """Whether indented words go on with what a record began: one that is whole by itself was indented by a person."""
    return not speaks(words) or (speaks(text) and "Xid (" not in words)


def _each(line: str) -> list[str]:
    """The records of a line of dmesg's; of no other, where a program may quote one."""
    return _NEXT.split(line) if _STAMPS[0].match(line) else [line]


class Paste:
    """Reads a pasted log, and knows afterwards how much of it was one."""

    def __init__(self) -> None:
        self.lines = self.taken = 0  # all that are not empty, and those that are records or belong to one
        self.unclear = 0  # those that name the driver and were not understood
        self._at = 0.0
        self._years = 0

    def records(self, lines: Iterable[str]) -> Iterator[Pasted]:
        """Each record, with the lines that are indented under it."""
        held: Pasted | None = None
        for raw in (one for line in lines for one in _each(line)):
            line = _PAINT.sub("", raw[:_LINE_CHARS]).rstrip().removeprefix("\ufeff").removeprefix("\x1e")
            line = line[before.end() :] if (before := _BEFORE.match(line)) else line
            if not (words := line.strip()):
                continue
            self.lines += 1
            record = self._device(line) or self._journal(line) or self._text(line)
            if record is None and held and line[0].isspace() and _under(held.text, words):
                held = replace(held, text=f"{held.text}\n{words}"[:_LINE_CHARS])
            elif record or speaks(words):
                if held:
                    yield held
                held = record or Pasted(self._at, words, True)
            else:
                self.unclear += names(words)
                continue
            self.taken += 1
        if held:
            yield held

    def _device(self, line: str) -> Pasted | None:
        if not _DEVICE.match(raw := line.encode(errors="replace")):
            return None
        try:
            record = parse_record(raw)
        except ValueError:
            return None
        return Pasted(self._later(record.usec / 1e6), record.text, record.facility == 0)

    def _journal(self, line: str) -> Pasted | None:
        """A line of ``journalctl -o json``; a message that is no UTF-8 comes as a list of bytes."""
        if not line.startswith("{"):
            return None
        try:
            entry = read_json(line)
            text, at = entry["MESSAGE"], int(entry.get("__REALTIME_TIMESTAMP", 0)) / 1e6
            text = bytes(text).decode(errors="replace") if isinstance(text, list) else text
        except (ValueError, TypeError, LookupError, OverflowError):
            return None
        if not isinstance(text, str):
            return None
        kernel = entry.get("_TRANSPORT", entry.get("SYSLOG_IDENTIFIER")) == "kernel"
        return Pasted(self._later(at), text, kernel)

    def _text(self, line: str) -> Pasted | None:
        """A line that begins with who said it or when; None if it does not."""
        who = _WHO.match(line)
        priority, facility = who.groups() if who else (None, None)
        rest = line[who.end() :] if who else line
        stamp = next((found for form in _STAMPS if (found := form.match(rest))), None)
        rest = rest[stamp.end() :].removeprefix(":") if stamp else rest
        if kernel := _KERNEL.match(rest):
            rest = rest[kernel.end() :]
        if not (stamp or kernel or priority or facility):
            return None
        ours = facility in (None, "kern") and int(priority or 0) >> 3 == 0
        if stamp and stamp[0][0] != "[" and not (kernel or facility or priority):  # a journal's, where others speak too
            rest = rest[host.end() :] if (host := _HOST.match(rest)) else rest
            ours = speaks(rest.strip())
        if inner := _STAMPS[0].match(rest):  # the kernel's own time beside syslog's
            rest = rest[inner.end() :]
        if caller := _CALLER.match(rest):
            rest = rest[caller.end() :]
        return Pasted(self._later(self._time(stamp) if stamp else self._at), rest.strip(), ours)

    def _time(self, stamp: re.Match[str]) -> float:
        """Seconds: since the boot or Unix, whichever the log has; the last one's where it can't be told."""
        said = stamp.groupdict()
        if boot_or_unix := said.get("boot") or said.get("unix"):
            return float(boot_or_unix)
        if since := said.get("since"):
            return self._at + float(since)
        try:
            if iso := said.get("iso"):
                when = datetime.fromisoformat(iso)
                return when.replace(tzinfo=when.tzinfo or UTC).timestamp()
            year = int(said.get("year") or _NO_YEAR + self._years)
            month, day, (hour, minute, *seconds) = said["month"], int(said["day"]), said["clock"].split(":")
            whole = datetime(year, _MONTHS.index(month[:3]) + 1, day, int(hour), int(minute), tzinfo=UTC).timestamp()
            at = whole + float(seconds[0] if seconds else 0)
        except (ValueError, LookupError):
            return self._at
        if at < self._at - _HALF_A_YEAR_S:  # December was before
            self._years += 1
            return self._time(stamp) if self._years < _MOST_YEARS else self._at
        return at

    def _later(self, at: float) -> float:
        """A log's time never goes backwards: what does is of the same moment."""
        self._at = max(self._at, at)
        return self._at
