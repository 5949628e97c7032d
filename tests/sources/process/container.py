"""The container of the sources as a thread of the test, with one source that beats."""

from __future__ import annotations

import contextlib
import selectors
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from agent.model.observation import Observation, Signal
from agent.sources.kubelet.pod_resources import command_line
from agent.sources.process.serving import Serving
from agent.sources.process.supervisor import Supervisor
from tests.waiting import LATEST_S

GOOD = Observation(0, "nvml", Signal.ALIVE).to_json().encode() + b"\n"
_BEATS = f"import time\nwhile True: print({GOOD.decode().strip()!r}, flush=True); time.sleep(0.05)"
Made = Callable[[dict[str, list[str]], float, Sequence[str], Sequence[str]], Supervisor]


@contextlib.contextmanager
def serving(
    folder: Path, told: list[str], made: Made = Supervisor, diagnosis: str = ""
) -> Iterator[tuple[Serving, Supervisor]]:
    """At the socket ``s`` of the folder; ``diagnosis`` is the program of one. It must live to the end."""
    commands = {"nvml": [sys.executable, "-c", _BEATS]}
    supervisor = made(commands, 30.0, command_line(folder / "kubelet.sock"), [sys.executable, "-c", diagnosis])
    stop = threading.Event()
    served = Serving(folder / "s", supervisor, lambda event, **_: told.append(event))
    thread = threading.Thread(target=served.run, args=(stop,))
    bell, rung = socket.socketpair()
    with bell, rung:
        supervisor.selector.register(rung, selectors.EVENT_READ, lambda: ())
        thread.start()
        try:
            yield served, supervisor
            assert thread.is_alive()
        finally:
            stop.set()
            bell.send(b"x")
            thread.join(LATEST_S)
