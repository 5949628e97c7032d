"""HTTP for probes, Prometheus and people: / /metrics /healthz /readyz /state. It serves the last Snapshot only.

Whoever reaches the port may be hostile. One thread serves all. A connection is for one request, and bounded in bytes
and in time. Where there are too many, the one that has waited the longest without asking gives way, and of answers that
nobody takes the oldest.
"""

from __future__ import annotations

import json
import re
import selectors
import socket
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from io import BytesIO
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from agent.config.settings import Http
from agent.model.errors import ConfigError

_MOST_CONNECTIONS = 512  # so that a probe has asked before so many others came
_MOST_UNSENT = 64  # answers at a time
_AT_ONCE = 256  # that are accepted before anybody else is attended to
_LONGEST_HEAD_BYTES = 8 * 1024
_MOST_BYTES = 64 * 1024  # that are read of one client: what follows the head is dropped
_BACKLOG = 4096  # as much as Linux gives by default: whoever finds it full tries again a second later
# An answer is given again for so many times what it took to make, a second at most: however often somebody asks, making
# it takes a twentieth of a core.
_AGAIN, _LONGEST_AGAIN_S = 20, 1.0
_END = re.compile(rb"\r?\n\r?\n")


@dataclass(eq=False, slots=True)
class _Connection:
    socket: socket.socket
    until: float  # monotonic seconds
    read: int = 0  # bytes in all
    head: bytes | None = b""  # what came of it; None once it was answered
    answer: list[memoryview] = field(default_factory=list)  # what is still to be sent; a body is many clients'


class Server:
    """Listens from the first moment, before any GPU is opened."""

    def __init__(
        self,
        http: Http,
        registry: CollectorRegistry,
        state: Callable[[], dict[str, Any]],
        alive: Callable[[], bool],
        ready: Callable[[], bool],
        connection_s: float = 10.0,
    ) -> None:
        """``connection_s``: from its beginning to its end, however slowly a client writes or reads."""
        self.registry, self.state, self.alive, self.ready = registry, state, alive, ready
        self._connection_s = connection_s
        self._made: dict[str, tuple[float, bytes]] = {}  # by path: until when it serves
        self._connections: dict[_Connection, None] = {}  # the oldest first
        self._unsent: dict[_Connection, None] = {}  # those whose answer is under way
        self._stopping = False
        # An empty address means both families; an IPv6 socket takes IPv4 callers too.
        dual = not http.address and socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual or ":" in http.address else socket.AF_INET
        address = (http.address or ("::" if dual else "0.0.0.0"), http.port)  # noqa: S104
        try:
            self._listener = socket.create_server(address, family=family, backlog=_BACKLOG, dualstack_ipv6=dual)
        except OSError as error:
            where = f"{http.address or '*'}:{http.port}"
            why = f"can't listen on {where} ({error.strerror}): choose a free port, and an address of this machine"
            raise ConfigError(f"http.address, http.port: {why}") from error
        self._listener.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve, name="http", daemon=True)

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    @property
    def connections(self) -> tuple[int, int]:
        """How many there are, and to how many of them an answer is under way."""
        return len(self._connections), len(self._unsent)

    def start(self) -> None:
        self._thread.start()

    def shutdown(self) -> None:
        """Hang up on everybody."""
        self._listener.shutdown(socket.SHUT_RDWR)  # which wakes the thread; it closes the socket once it is to stop
        self._stopping = True
        self._thread.join()

    def made(self, path: str, make: Callable[[], bytes]) -> bytes:
        """What was made for this path lately, or what is made now."""
        until, body = self._made.get(path, (0.0, b""))
        if time.monotonic() >= until:
            began = time.thread_time()
            body = make()
            again_s = min(_LONGEST_AGAIN_S, _AGAIN * (time.thread_time() - began))
            self._made[path] = (time.monotonic() + again_s, body)
        return body

    def _serve(self) -> None:
        while not self._stopping:
            now = time.monotonic()
            for overdue in [one for one in self._connections if one.until <= now]:
                self._hang_up(overdue)
            oldest = next(iter(self._connections), None)
            for key, _ in self._selector.select(oldest.until - now if oldest else None):
                if key.data is None:
                    self._accept()
                elif key.data in self._connections:  # not hung up on in this very round
                    self._attend(key.data)
        for one in list(self._connections):
            self._hang_up(one)
        self._listener.close()
        self._selector.close()

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                accepted, _address = self._listener.accept()
            except BlockingIOError:
                return
            except OSError:  # of whoever has gone meanwhile, or for want of file descriptors
                self._make_room()
                return
            if len(self._connections) >= _MOST_CONNECTIONS:
                self._make_room()
            accepted.setblocking(False)
            connection = _Connection(accepted, time.monotonic() + self._connection_s)
            self._connections[connection] = None
            self._selector.register(accepted, selectors.EVENT_READ, connection)
            self._attend(connection)  # a probe's request is there already

    def _make_room(self) -> None:
        if waiting := next((one for one in self._connections if one not in self._unsent), None):
            self._hang_up(waiting)

    def _attend(self, one: _Connection) -> None:
        try:
            if one.answer or self._asked(one):
                self._send(one)
        except BlockingIOError:
            pass
        except OSError:  # a client that hung up is no news
            self._hang_up(one)

    def _asked(self, one: _Connection) -> bool:
        """Take in what came; whether there is an answer to it now."""
        data = one.socket.recv(_LONGEST_HEAD_BYTES)
        one.read += len(data)
        if not data or one.read > _MOST_BYTES:
            self._hang_up(one)
            return False
        if one.head is None:
            return False
        one.head += data
        end = _END.search(one.head)
        if end is None and len(one.head) < _LONGEST_HEAD_BYTES:
            return False
        head = one.head[: end.end()] if end and end.end() <= _LONGEST_HEAD_BYTES else None
        one.head, one.answer = None, [memoryview(part) for part in _Request(self, head).answer()]
        return True

    def _send(self, one: _Connection) -> None:
        sent = one.socket.sendmsg(one.answer)
        while one.answer and sent >= len(one.answer[0]):
            sent -= len(one.answer.pop(0))
        if one.answer:
            one.answer[0] = one.answer[0][sent:]
        if one.answer and one not in self._unsent:
            if len(self._unsent) >= _MOST_UNSENT:
                self._hang_up(next(iter(self._unsent)))
            self._unsent[one] = None
            self._selector.modify(one.socket, selectors.EVENT_WRITE, one)
        elif not one.answer:  # it is read on until the client hangs up: a reset could overtake the answer
            if one in self._unsent:
                del self._unsent[one]
                self._selector.modify(one.socket, selectors.EVENT_READ, one)
            one.socket.shutdown(socket.SHUT_WR)

    def _hang_up(self, one: _Connection) -> None:
        del self._connections[one]
        self._unsent.pop(one, None)
        self._selector.unregister(one.socket)
        one.socket.close()


class _Request(BaseHTTPRequestHandler):
    """One request that came whole, and its answer; it touches no socket."""

    default_request_version = "HTTP/1.0"  # so that whatever is malformed is answered with a status
    requestline = command = ""
    request_version = default_request_version
    wfile: BytesIO

    def __init__(self, server: Server, head: bytes | None) -> None:
        """``head``: the request without its body; None if it is longer than any."""
        self._server, self._head, self._body = server, head, b""
        self.rfile, self.wfile = BytesIO(head or b""), BytesIO()
        self.client_address = ("", 0)

    def answer(self) -> tuple[bytes, bytes]:
        """Its head and its body."""
        try:
            if self._head is None:
                self.send_error(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
            else:
                self.handle_one_request()
        except Exception:  # noqa: BLE001 - a bug is told as one, and ends no other answer
            traceback.print_exc()
            self.wfile, self._body = BytesIO(), b""
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR)
        if not self.wfile.tell() or self.request_version == "HTTP/0.9":  # an empty line; what knows no status
            self.wfile, self._body, self.request_version = BytesIO(), b"", self.default_request_version
            self.send_error(HTTPStatus.BAD_REQUEST)
        return self.wfile.getvalue(), self._body

    def do_GET(self) -> None:
        server, (path, _, query) = self._server, self.path.partition("?")
        match path:
            case "/":
                from agent.status.page import HEADERS, page  # no agent pays for it until somebody looks

                hold = query == "hold"
                body = server.made(f"/?{hold}", lambda: page(server.state(), time.time(), refreshing=not hold).encode())
                self._answer(HTTPStatus.OK, "text/html; charset=utf-8", body, HEADERS)
            case "/metrics":
                body = server.made(path, lambda: generate_latest(server.registry))
                self._answer(HTTPStatus.OK, CONTENT_TYPE_LATEST, body)
            case "/healthz":
                self._probe(
                    server.alive(),
                    "the judge loop and the act loop turn",
                    "the judge loop or the act loop stands still",
                )
            case "/readyz":
                why = "no verdict yet, the Node was not read yet, or a right is missing: see /state"
                self._probe(server.ready(), "judging", why)
            case "/state":
                body = server.made(path, lambda: json.dumps(server.state(), indent=2).encode())
                self._answer(HTTPStatus.OK, "application/json", body)
            case _:
                self._answer(HTTPStatus.NOT_FOUND, "text/plain", b"try /, /metrics, /healthz, /readyz or /state\n")

    do_HEAD = do_GET  # noqa: N815 - http.server calls it so

    def _probe(self, good: bool, yes: str, no: str) -> None:
        status = HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE
        self._answer(status, "text/plain", f"{yes if good else no}\n".encode())

    def _answer(self, status: int, kind: str, body: bytes, headers: Mapping[str, str] = {}) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self._body = body

    def log_message(self, *_: Any) -> None:
        """Probes and scrapes are no news."""
