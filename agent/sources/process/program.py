"""What each source's program does in the same way."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from agent.model.observation import Observation


def say(observation: Observation) -> None:
    """A line on standard output; BrokenPipeError when nobody reads any more."""
    sys.stdout.write(observation.to_json() + "\n")
    sys.stdout.flush()


def say_result(result: Mapping[str, object]) -> None:
    """The one line of a program that is asked once."""
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()


def while_read(program: Callable[[], int]) -> int:
    """The program's exit code; 0 once nobody reads any more, and the interpreter's last flush does not fail either."""
    try:
        return program()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 0


def kept_on(follow: Callable[[], None], failure: Callable[[OSError], Observation], pause_s: float) -> int:
    """Follow for ever: what can't be read is said and tried again after ``pause_s`` seconds. The exit code, once nobody
    reads any more."""

    def on_and_on() -> int:
        while True:
            try:
                follow()
            except BrokenPipeError:
                raise
            except OSError as error:
                say(failure(error))
                time.sleep(pause_s)

    return while_read(on_and_on)


def read_boot_id(path: Path) -> str:
    """The kernel's name for this boot; empty when it can't be read."""
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
