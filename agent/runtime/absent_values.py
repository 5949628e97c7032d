"""Values that a GPU does not give: a log line for each that it never has, a count of each that could not be read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from agent.config.source_index import GPUS
from agent.diagnosis.history import History
from agent.model.observation import Missing, Observation

_MOST = 16_384  # 256 GPUs of 64 values: a source that makes names up fills no memory
NOT_SUPPORTED = "not supported by these GPUs or their driver: rules that need it find nothing"


class AbsentValues:
    """What a GPU lacks is told once in the agent's life; one that comes back for a while is no news."""

    def __init__(self, tell: Callable[..., None]) -> None:
        self._tell, self._told = tell, set[tuple[str, str]]()
        self.failed: Counter[tuple[str, str]] = Counter()  # GPU and signal: in how many polls it could not be read
        self._alive: Observation | None = None

    def look(self, history: History) -> None:
        """After each whole poll, so that a line names all of them."""
        if history.alive.get(GPUS) is self._alive:
            return
        self._alive = history.alive.get(GPUS)
        news: dict[str, list[str]] = {}
        for pci, reading in history.readings.items():
            for name, value in reading.values.items():
                key = pci, name
                if value is Missing.UNSUPPORTED and key not in self._told and len(self._told) < _MOST:
                    self._told.add(key)
                    news.setdefault(name, []).append(pci)
                elif value is Missing.UNREADABLE and (key in self.failed or len(self.failed) < _MOST):
                    self.failed[key] += 1
        for name, gpus in sorted(news.items()):
            self._tell(NOT_SUPPORTED, value=name, gpus=gpus)
