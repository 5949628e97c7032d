"""Addresses, times and foreign text, each in its one form."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Literal

_PCI = re.compile(r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}):([0-9a-f]{2})(?:\.([0-7]))?", re.IGNORECASE)
_FIRST_S, _LAST_S = -62135596800.0, 253402300799.0  # the years 1 to 9999


def normalise_pci(text: str) -> str:
    """``00000000:1B:00.0`` (NVML) and ``0000:1b:00`` (kernel) both become ``0000:1b:00.0``."""
    match = _PCI.fullmatch(str(text).strip())
    if not match:
        raise ValueError(f"not a PCI address: {text!r}"[:100])
    domain, bus, device, function = match.groups()
    return f"{int(domain or '0', 16):04x}:{bus.lower()}:{device.lower()}.{function or '0'}"


def printable(text: str) -> str:
    """Text of a kernel, a process or an API object for people: one line, and nothing that a terminal obeys."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def rfc3339(at: float, precision: Literal["seconds", "milliseconds", "microseconds"] = "microseconds") -> str:
    """Unix seconds as RFC 3339 in UTC. Its years are 1 to 9999: what lies beyond is written as the nearest of them."""
    date = datetime.fromtimestamp(min(max(_FIRST_S, at), _LAST_S), UTC)
    return date.isoformat(timespec=precision).replace("+00:00", "Z")


def unix_s(text: object) -> float | None:
    """RFC 3339 as Unix seconds; None for anything else, and for a time without its zone."""
    try:
        at = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None
    return at.timestamp() if at and at.tzinfo else None
