"""What a storage that fails for a while keeps a training from: told once, and shown for as long as it lasts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Container

_log = logging.getLogger("trouble")


class Troubles:
    """Those of one training."""

    def __init__(self) -> None:
        self._now: dict[str, str] = {}  # what can't be done, and why

    def tried(self, what: str, act: Callable[[], object], fatal: Container[int | None] = ()) -> bool:
        """Whether it could be done. An OSError whose errno is in ``fatal`` is raised."""
        try:
            act()
        except OSError as error:
            if error.errno in fatal:
                raise
            if self._now.get(what) != str(error):
                self._now[what] = str(error)
                _log.error("can't %s: %s; older checkpoints stand, it is tried again", what, error)
            return False
        if self._now.pop(what, None):
            _log.info("can %s again", what)
        return True

    def text(self) -> str:
        """All of them; empty where there are none."""
        return "; ".join(f"can't {what}: {why}" for what, why in self._now.copy().items())
