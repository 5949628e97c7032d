"""Whether a job may join on this node: told at once over a unix socket, from what the agent said last.

Whoever asks is a stranger's pod. So this is a process of its own, without credential or privilege. It asks the agent
once a second, and never while somebody waits: however the driver or the agent hangs, an answer takes no longer. No word
of the agent for a while, or none of its GPUs, is a no.
"""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer
from typing import Any

from agent.config.source_index import GPUS
from agent.sources.process.serving import listen

_EVERY_S = 1.0
_SERVES_S = 5.0  # so old may the agent's word be
_GPUS_S = 20.0  # and what its GPUs said: a call that hangs is a fault only after minutes
# The Node's state where no fault stands any more, and no pod is to come yet.
_CHECKED = {"validating": "its GPUs are checked", "unhealthy": "its GPUs failed their check"}
_WAITS_S = 1.0  # for whoever asks
_MOST, _WAITING = 64, 1024  # at a time, and until it is their turn
_MOST_BYTES = 64 * 1024

State = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """As it goes over the socket."""

    fit: bool
    status: str  # healthy, degraded, unhealthy, unknown
    why: tuple[str, ...] = ()


def answer(state: State | None, age_s: float) -> Answer:
    """``state`` is the agent's, as /state has it, so many seconds old; None: it never said any."""
    if state is None or age_s > _SERVES_S:
        return Answer(False, "unknown", ("the agent of this node does not answer",))
    try:
        return _read(state, age_s)
    except (KeyError, TypeError, ValueError) as error:  # whatever listens on its port may say anything
        return Answer(False, "unknown", (f"the agent's answer makes no sense ({type(error).__name__})",))


def _read(state: State, age_s: float) -> Answer:
    quiet = [float(one["age_s"]) for one in state["sources"] if one["name"] == GPUS and one["age_s"] is not None]
    if not quiet:
        return Answer(False, "unknown", ("the GPUs have said nothing yet",))
    if not 0 <= quiet[0] + age_s <= _GPUS_S:
        return Answer(False, "unknown", (f"the GPUs have said nothing for {quiet[0] + age_s:.0f} s",))
    faults = tuple(f"{one['id']}: {one['severity']}" for one in state["faults"] if one["severity"] != "notice")
    if state["status"] in ("healthy", "degraded") and (stage := state.get("stage")) in _CHECKED:
        return Answer(False, "unhealthy", (_CHECKED[stage], *faults))
    fit = state["status"] in ("healthy", "degraded")
    return Answer(fit, str(state["status"]), (*faults, *map(str, state["blind"])))


class Door:
    """Answers from now on. ``ask``: the agent's state, None where it does not answer."""

    def __init__(
        self, path: Path, ask: Callable[[], State | None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ask, self._clock = ask, clock
        self._last: tuple[State | None, float] = None, 0.0
        self._server = _Server(path, self.now)
        self._stop = threading.Event()

    def now(self) -> Answer:
        state, at = self._last
        return answer(state, self._clock() - at)

    def run(self) -> None:
        """Until ``stop``."""
        threading.Thread(target=self._server.serve_forever, args=(0.1,), name="door", daemon=True).start()
        while not self._stop.is_set():
            began = self._clock()
            if (state := self._ask()) is not None:
                self._last = state, began
            self._stop.wait(_EVERY_S)
        self._server.shutdown()
        self._server.server_close()

    def stop(self) -> None:
        """``run`` ends soon."""
        self._stop.set()


class _Server(ThreadingMixIn, UnixStreamServer):
    """A thread for each that asks. Beyond so many the one that came first gives way: it has had time to ask.

    Whoever hears nothing takes it for a no.
    """

    daemon_threads = True

    def __init__(self, path: Path, now: Callable[[], Answer]) -> None:
        self.answer = now
        self._lock, self._there = threading.Lock(), dict[socket.socket, None]()  # in the order of their coming
        super().__init__(str(path), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listen(path)
        self.socket.listen(_WAITING)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            while len(self._there) >= _MOST:
                _cut(first := next(iter(self._there)))
                del self._there[first]
            self._there[request] = None
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        super().process_request_thread(request, client_address)
        with self._lock:
            self._there.pop(request, None)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is no news."""


class _Handler(BaseHTTPRequestHandler):
    timeout = _WAITS_S
    server: _Server

    def do_GET(self) -> None:
        found = self.server.answer()
        body = json.dumps(asdict(found)).encode() + b"\n"
        self.send_response(HTTPStatus.OK if found.fit else HTTPStatus.SERVICE_UNAVAILABLE)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return ""

    def log_message(self, *_: Any) -> None:
        """Questions are no news."""


def asked(path: Path) -> Answer:
    """What a door says; unknown where nobody stands at it."""
    connection = http.client.HTTPConnection("localhost", timeout=_WAITS_S)
    over = threading.Timer(_WAITS_S, _hang_up, (connection,))  # an answer that drips is none
    over.daemon = True
    try:
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.sock.settimeout(_WAITS_S)
        over.start()
        connection.sock.connect(str(path))
        connection.request("GET", "/check")
        said = json.loads(connection.getresponse().read(_MOST_BYTES))
        return Answer(said["fit"] is True, str(said["status"]), tuple(map(str, said["why"])))
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError, RecursionError) as error:
        why = (isinstance(error, OSError) and error.strerror) or type(error).__name__
        return Answer(False, "unknown", (f"{path} does not answer ({why})",))
    finally:
        over.cancel()
        connection.close()


def _hang_up(connection: http.client.HTTPConnection) -> None:
    if connection.sock:
        _cut(connection.sock)


def _cut(line: socket.socket) -> None:
    with suppress(OSError):
        line.shutdown(socket.SHUT_RDWR)
