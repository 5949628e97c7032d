"""What each source's program does in the same way."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from agent.model.observation import Observation


def say(observation: Observation) -> None:
    """A line on standard output; BrokenPipeError when nobody reads any more."""
    sys.stdout.write(observation.to_json() + "\n")
    sys.stdout.flush()


def kept_on(follow: Callable[[], None], failure: Callable[[OSError], Observation], pause_s: float) -> int:
    """Follow for ever: what can't be read is said and tried again after ``pause_s`` seconds. The exit code, once nobody
    reads any more."""
    try:
        while True:
            try:
                follow()
            except OSError as error:
                if isinstance(error, BrokenPipeError):
                    raise
                say(failure(error))
                time.sleep(pause_s)
    except (BrokenPipeError, KeyboardInterrupt):
        return 0


def read_boot_id(path: Path) -> str:
    """The kernel's name for this boot; empty when it can't be read."""
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
