"""Values that a GPU or its driver does not have: one log line for each, with the GPUs that lack it."""

from __future__ import annotations

from collections.abc import Callable

from agent.config.source_index import GPUS
from agent.diagnosis.history import History
from agent.model.observation import Missing, Observation

_MOST = 16_384  # 256 GPUs of 64 values: a source that makes names up fills no memory
NOT_SUPPORTED = "not supported by these GPUs or their driver: rules that need it find nothing"


class Unsupported:
    """Each value of each GPU is told once in the agent's life; one that comes back for a while is no news."""

    def __init__(self, tell: Callable[..., None]) -> None:
        self._tell, self._told = tell, set[tuple[str, str]]()
        self._alive: Observation | None = None

    def look(self, history: History) -> None:
        """After each whole poll, so that a line names all of them."""
        if history.alive.get(GPUS) is self._alive:
            return
        self._alive = history.alive.get(GPUS)
        news: dict[str, list[str]] = {}
        for pci, reading in history.readings.items():
            absent = [name for name, value in reading.values.items() if value is Missing.UNSUPPORTED]
            for name in absent:
                if (name, pci) not in self._told and len(self._told) < _MOST:
                    self._told.add((name, pci))
                    news.setdefault(name, []).append(pci)
        for name, gpus in sorted(news.items()):
            self._tell(NOT_SUPPORTED, value=name, gpus=gpus)
