"""DCGM through pydcgm: a second witness of the GPUs, as JSON lines on standard output.

Without an engine this is a process that looks for one now and then and imports nothing of DCGM's.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from agent.model.observation import Failure, Observation, Signal
from agent.model.text import printable
from agent.sources.dcgm.bindings import Bindings, NoBindingsError, load
from agent.sources.dcgm.engine import ChangedError, Engine, EngineError, observe
from agent.sources.process.program import say
from agent.sources.process.progress import SLOW_S, CurrentCall

USUAL = "127.0.0.1:5555"  # where nv-hostengine listens by itself
EMBEDDED, AUTO = "embedded", "auto"
_LOOK_S = 30.0  # between two looks for an engine
_LASTING_S = 60.0  # before another try, where only a person can mend it
_WAIT_S, _CONNECT_S = 0.5, 1.0
_EXIT_RENEW = 75  # sysexits EX_TEMPFAIL: a new process connects anew, with nothing left of a dead connection

UNREACHABLE = (-7, -11, -21)  # INIT_ERROR, TIMEOUT, CONNECTION_NOT_VALID
_FAILURES: dict[int, tuple[Failure, str]] = {
    -11: (Failure.HUNG, "the DCGM engine does not answer"),
    -12: (Failure.LIBRARY_MISMATCH, "the DCGM engine and the DCGM library here are of versions that don't go together"),
    -25: (Failure.NO_LIBRARY, "libdcgm is not in this container: mount the host's, or build the image with it"),
    -54: (Failure.UNREADABLE, "the DCGM engine is paused"),
    -56: (Failure.UNREADABLE, "the DCGM engine has no driver: it was detached from it, or could not load NVML"),
    -67: (Failure.UNREADABLE, "the DCGM engine has let go of its GPUs"),
}


def follow(
    address: str,
    bindings: Callable[[], Bindings],
    poll_s: float,
    health_s: float,
    stop: threading.Event,
    say: Callable[[Observation], None],
    look_s: float = _LOOK_S,
) -> int:
    """Read the engine until ``stop``; the exit code. Nothing waits on ``stop`` itself, as in the NVML source."""
    call, found = CurrentCall("dcgm", "the DCGM engine"), USUAL if address == AUTO else address
    limit_s = max(poll_s, SLOW_S)
    threading.Thread(target=call.watch, args=(limit_s, stop, say), name="stuck", daemon=True).start()
    engine: Engine | None = None
    while not stop.is_set():
        due = time.monotonic() + poll_s
        call.begins("connecting")
        if engine is None and not answers(found):
            say(_nobody(address, found))
            due = time.monotonic() + look_s
        else:
            try:
                engine = engine or Engine(bindings(), found, poll_s, health_s, call)
                for observation in engine.poll():
                    say(observation)
            except ChangedError:
                return _EXIT_RENEW
            except Exception as error:  # noqa: BLE001 - the bindings' own error class is not importable here
                unreachable = error_number(error) in UNREACHABLE
                what, _ = (
                    call.stuck(limit_s) if unreachable else ("", "")
                )  # the library waits for a minute and gives up
                say(call.hung(what) if what else failure(error, found))
                if not unreachable:
                    _wait(time.monotonic() + _LASTING_S, stop, call)
                return _EXIT_RENEW
        _wait(due, stop, call)
    if engine:
        with contextlib.suppress(Exception):  # it died in this very moment
            engine.close()
    call.begins("")
    return 0


def answers(address: str) -> bool:
    """Whether somebody listens: the bindings would wait 5 s for nobody."""
    if address == EMBEDDED:
        return True
    try:
        if address.startswith("/"):
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(_CONNECT_S)
                probe.connect(address)
        else:
            host, _, port = address.rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S).close()
    except (OSError, OverflowError, UnicodeError):  # nobody, or no such port or name
        return False
    return True


def _nobody(address: str, found: str) -> Observation:
    if address == AUTO:
        sentence = f"no DCGM engine answers on {found}: the GPUs are watched without it"
        return observe(Signal.FAILED, value=Failure.ABSENT, raw=sentence)
    sentence = f"no DCGM engine answers at {found}, which sources.dcgm.address names"
    return observe(Signal.FAILED, value=Failure.UNREADABLE, raw=sentence)


def failure(error: Exception, address: str) -> Observation:
    """What went wrong as a fact, never a GPU's fault by itself."""
    number = error_number(error)
    if isinstance(error, EngineError):
        return observe(Signal.FAILED, value=error.failure, raw=str(error))
    if isinstance(error, NoBindingsError):
        sentence = f"a DCGM engine answers at {address}, but {error}"
        return observe(Signal.FAILED, value=Failure.NO_LIBRARY, raw=sentence)
    if number is None:
        raise error
    if number in UNREACHABLE and number not in _FAILURES:
        sentence = f"the DCGM engine at {address} ended the connection (DCGM error {number})"
        return observe(Signal.FAILED, value=Failure.UNREADABLE, raw=sentence)
    value, sentence = _FAILURES.get(number, (Failure.UNREADABLE, "the DCGM engine can't be used"))
    own = printable(str(getattr(error, "info", None) or ""))[:200]  # the engine's words, where it has some
    return observe(Signal.FAILED, value=value, raw=f"{sentence} (DCGM error {number}{': ' if own else ''}{own})")


def error_number(error: Exception) -> int | None:
    """The bindings' own errors carry their number; whatever else happens is a bug."""
    value: Any = getattr(error, "value", None)
    return value if type(error).__name__.startswith("DCGMError") and isinstance(value, int) else None


def _wait(due: float, stop: threading.Event, call: CurrentCall) -> None:
    call.begins("")
    while not stop.is_set() and (left := due - time.monotonic()) > 0:
        time.sleep(min(_WAIT_S, left))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m agent.sources.dcgm", description=__doc__)
    parser.add_argument("--address", default=AUTO, help="host:port, a socket's path, auto, or embedded")
    parser.add_argument("--bindings", type=Path, metavar="D", help="the folder with pydcgm.py")
    parser.add_argument("--library", type=Path, metavar="D", help="the folder with libdcgm.so")
    parser.add_argument("--poll-s", type=float, default=10.0)
    parser.add_argument("--health-s", type=float, default=30.0)
    options = parser.parse_args()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        bindings = partial(load, options.bindings, options.library)
        code = follow(options.address, bindings, options.poll_s, options.health_s, stop, say)
    except BrokenPipeError:  # nobody reads any more
        code = _EXIT_RENEW
    except KeyboardInterrupt:
        code = 0
    if code:
        os._exit(code)  # without the bindings' destructors, which would call into a dead connection
    return code


if __name__ == "__main__":
    sys.exit(main())
