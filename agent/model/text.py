"""Addresses, times and foreign text, each in its one form."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal

_PCI = re.compile(r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}):([0-9a-f]{2})(?:\.([0-7]))?", re.IGNORECASE)
_FAULT_ID = re.compile(r"[a-z0-9-]{1,24}@[0-9a-z:./]{1,28}")  # xid-79@0000:1b:00.0/gi5
_MOST_IDS = 64
_QUOTED = 160
_FIRST_S, LAST_S = -62135596800.0, 253402300799.0  # the years 1 to 9999
_LARGEST = 2**64  # NVML's largest counters; no number that we read is longer
_DEEPEST = 64  # lists and objects in one another; what we read and write has a dozen
_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # of a character: without the other half it can't be written as UTF-8


def normalise_pci(text: str) -> str:
    """``00000000:1B:00.0`` (NVML) and ``0000:1b:00`` (kernel) both become ``0000:1b:00.0``."""
    match = _PCI.fullmatch(str(text).strip())
    if not match:
        raise ValueError(f"not a PCI address: {text!r}"[:100])
    domain, bus, device, function = match.groups()
    return f"{int(domain or '0', 16):04x}:{bus.lower()}:{device.lower()}.{function or '0'}"


def fault_ids(text: str) -> tuple[frozenset[str], int]:
    """The ids of faults that a person wrote down, with commas or spaces between, and how many other words there are.

    So many at most as keep what is remembered of them small.
    """
    words = dict.fromkeys(text.replace(",", " ").split())
    ids = [word for word in words if _FAULT_ID.fullmatch(word)][:_MOST_IDS]
    return frozenset(ids), len(words) - len(ids)


def printable(text: str) -> str:
    """Text of a kernel, a process or an API object for people: one line, and nothing that a terminal obeys."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of as many cells each as lines in columns, for a terminal."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def quoted(raw: str) -> str:
    """A kernel record as a sentence may quote it: one line without the driver's mark, at most 160 characters."""
    return f"“{printable(' '.join(raw.replace('NVRM:', ' ').split()))[:_QUOTED]}”"


def read_json(text: str | bytes) -> Any:
    """JSON that anybody may have written. ValueError for what is none, and for what could not be passed on:

    NaN, an endless or huge number, half a character, values nested without end.
    """
    text = text if isinstance(text, str) else text.decode()
    try:
        value = _JSON.decode(text)
    except (RecursionError, MemoryError):
        raise ValueError("JSON that is nested too deeply") from None
    if text.count("[") + text.count("{") > _DEEPEST:
        inner = [value]
        for _ in range(_DEEPEST + 1):
            inner = [one for outer in inner for one in _members(outer)]
        if inner:
            raise ValueError("JSON that is nested too deeply")
    if _HALF.search(text):
        json.dumps(value, ensure_ascii=False).encode()  # UnicodeEncodeError is a ValueError
    return value


def is_number(value: float) -> bool:
    """Whether ``read_json`` reads it: neither NaN nor endless, and no larger than any that we read."""
    return abs(value) <= _LARGEST


def _members(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _checked(kind: type[int] | type[float], text: str) -> int | float:
    number = kind(text)
    if not is_number(number):
        raise ValueError(f"JSON with a number larger than any that the agent reads: {text[:30]}")
    return number


_float = partial(_checked, float)
_JSON = json.JSONDecoder(parse_float=_float, parse_constant=_float, parse_int=partial(_checked, int))


def rfc3339(at: float, precision: Literal["seconds", "milliseconds", "microseconds"] = "microseconds") -> str:
    """Unix seconds as RFC 3339 in UTC. Its years are 1 to 9999: what lies beyond is written as the nearest of them."""
    date = datetime.fromtimestamp(min(max(_FIRST_S, at), LAST_S), UTC)
    return date.isoformat(timespec=precision).replace("+00:00", "Z")


def unix_s(text: object) -> float | None:
    """RFC 3339 as Unix seconds; None for anything else, and for a time without its zone."""
    try:
        at = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None
    return at.timestamp() if at and at.tzinfo else None
