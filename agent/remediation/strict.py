"""What a field of the stored annotation may hold. All else is ValueError: whoever wrote that was not the agent."""

from __future__ import annotations

import re
from collections.abc import Mapping

from agent.model.text import LAST_S, normalise_pci

_RULE = re.compile(r"[a-z0-9-]{1,64}")
_LARGEST, _LONGEST = 1e300, 10_000


def text(value: object) -> str:
    if not isinstance(value, str) or len(value) > _LONGEST:
        raise ValueError(f"{_shown(value)} is no text of at most {_LONGEST} characters")
    return value


def number(value: object, least: float = -_LARGEST, most: float = _LARGEST) -> float:
    """A number, and never NaN or an infinity: JSON as Python reads it has both."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"{_shown(value)} is no number from {least:g} to {most:g}")
    return float(value)


def whole(value: object, least: int = 0, most: float = 2**64) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"{_shown(value)} is no whole number from {least} to {most:g}")
    return value


def at(value: object) -> float:
    """Unix seconds that can be told as a date."""
    return number(value, 0.0, LAST_S)


def second(value: object) -> int:
    """Whole Unix seconds that can be told as a date."""
    return whole(value, 0, LAST_S)


def flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{_shown(value)} is neither true nor false")
    return value


def rule(value: object) -> str:
    if not _RULE.fullmatch(text(value)):
        raise ValueError(f"{_shown(value)} is no name of a rule")
    return str(value)


def pci(value: object) -> str:
    """A PCI address in our own form; empty for what is the node's own."""
    if text(value) and normalise_pci(str(value)) != value:
        raise ValueError(f"{_shown(value)} is no PCI address in the form 0000:1b:00.0")
    return str(value)


def each(value: object) -> list[object]:
    if not isinstance(value, list):
        raise ValueError(f"{_shown(value)} is no list")
    return value


def texts(value: object) -> tuple[str, ...]:
    return tuple(map(text, each(value)))


def table(value: object) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise ValueError(f"{_shown(value)} is no object")
    return value


def _shown(value: object) -> str:
    """The value for a sentence, in short: it is hostile, and of any size."""
    return (
        repr(value)[:60] if isinstance(value, str | float | bool | None) else f"a value of type {type(value).__name__}"
    )
