"""A drill's word among the observations: believed while our own Node bears its nonce, else dropped."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from agent.model.observation import Observation
from agent.model.text import read_json, unix_s

_NONCE = re.compile(r"[0-9a-f]{32}")
_AHEAD_S = 15 * 60.0  # a drill that nobody ends is over by then
_MOST_WAITING = 4
_PATIENCE_S = 15.0  # for the act loop's look at the Node
_ASK_EVERY_S = 10.0  # whoever floods the kernel log makes no more reads than this


def valid(annotation: str | None, now: float) -> str:
    """The nonce of ``{"nonce": …, "expires": RFC 3339}``; empty if it is another text, over, or too far ahead.

    ``now`` is Unix seconds.
    """
    try:
        data = read_json(annotation or "{}")
        nonce, expires = data["nonce"], unix_s(data["expires"])
        if not _NONCE.fullmatch(nonce) or expires is None:
            return ""
        return str(nonce) if now < expires <= now + _AHEAD_S else ""
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        return ""


class DrillMarks:
    """Holds a drill's records until the Node was looked at since. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._waiting: list[Observation] = []
        self._asked = float("-inf")
        self.dropped = 0

    @property
    def waits(self) -> bool:
        return bool(self._waiting)

    def admitted(self, seen: Iterable[Observation], now: float, nonce: str, looked: float) -> list[Observation]:
        """What is to be judged now. ``nonce`` is what the Node bore when a look began at ``looked``."""
        judged: list[Observation] = []
        marked = self._waiting
        for one in seen:
            (marked if one.drill else judged).append(one)
        self._waiting = []
        for one in marked:
            if one.drill == nonce and not one.past:
                judged.append(replace(one, arrived=now))  # as a replay will have it
            elif looked < one.arrived and now - one.arrived < _PATIENCE_S and len(self._waiting) < _MOST_WAITING:
                self._waiting.append(one)
            else:
                self.dropped += 1
        return judged

    def asks(self, now: float) -> bool:
        """Whether the act loop is to look at the Node at once."""
        if not self._waiting or now - self._asked < _ASK_EVERY_S:
            return False
        self._asked = now
        return True
