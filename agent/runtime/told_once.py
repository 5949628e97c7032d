"""Which waits are news: each is told once while it stands, whatever its numbers count meanwhile."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable

from agent.model.steps import Wait

_AGAIN_S = 600.0  # one that was gone for so long is told again
# Times, durations and counts that stand by themselves; those in names and addresses tell two things apart.
_CHANGING = re.compile(
    r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:?\d\d)?"
    r"|(?<![\w/:@.-])\d+(?:\.\d+)?(?:ms|%|h\d+m\d+(?:\.\d+)?s|[hm]\d+(?:\.\d+)?[ms]|[smh])?(?![\w/:@-]|\.\d)"
)


class ToldOnce:
    """Remembers what was told lately."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._stood: dict[str, float] = {}  # a sentence without its numbers → when it stood last

    def news(self, waits: Iterable[Wait]) -> list[Wait]:
        """Of these, which stand now, those that are to be told."""
        now, new = self._clock(), list[Wait]()
        for wait in waits:
            words = _CHANGING.sub("#", wait.why)
            if now - self._stood.get(words, float("-inf")) >= _AGAIN_S:
                new.append(wait)
            self._stood[words] = now
        self._stood = {words: at for words, at in self._stood.items() if now - at < _AGAIN_S}
        return new
