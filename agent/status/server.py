"""HTTP for probes, Prometheus and people: / /metrics /healthz /readyz /state. It serves the last Snapshot only."""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from agent.config.settings import Http
from agent.model.errors import ConfigError

_REQUEST_TIMEOUT_S = 10


class Server(ThreadingHTTPServer):
    """Listens from the first moment, before any GPU is opened."""

    daemon_threads = True

    def __init__(
        self,
        http: Http,
        registry: CollectorRegistry,
        state: Callable[[], dict[str, Any]],
        alive: Callable[[], bool],
        ready: Callable[[], bool],
    ) -> None:
        self.registry, self.state, self.alive, self.ready = registry, state, alive, ready
        # An empty address means both families; an IPv6 socket takes IPv4 callers too.
        dual = not http.address and socket.has_dualstack_ipv6()
        self.address_family = socket.AF_INET6 if dual or ":" in http.address else socket.AF_INET
        self._dual = dual
        try:
            super().__init__((http.address or ("::" if dual else "0.0.0.0"), http.port), _Handler)  # noqa: S104
        except OSError as error:
            where = f"{http.address or '*'}:{http.port}"
            raise ConfigError(f"http.port: can't listen on {where} ({error.strerror}): choose a free one") from error

    def server_bind(self) -> None:
        if self._dual:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is no news; anything else is a bug, and is told as one."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def start(self) -> None:
        threading.Thread(target=self.serve_forever, name="http", daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    server: Server
    timeout = _REQUEST_TIMEOUT_S

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        match path:
            case "/":
                from agent.status.page import HEADERS, page  # no agent pays for it until somebody looks

                body = page(self.server.state(), time.time(), refreshing=query != "hold").encode()
                self._answer(HTTPStatus.OK, "text/html; charset=utf-8", body, HEADERS)
            case "/metrics":
                self._answer(HTTPStatus.OK, CONTENT_TYPE_LATEST, generate_latest(self.server.registry))
            case "/healthz":
                self._probe(self.server.alive(), "the judge loop turns", "the judge loop stands still")
            case "/readyz":
                self._probe(self.server.ready(), "judging", "no verdict yet, or the Node was not read yet")
            case "/state":
                body = json.dumps(self.server.state(), indent=2).encode()
                self._answer(HTTPStatus.OK, "application/json", body)
            case _:
                self._answer(HTTPStatus.NOT_FOUND, "text/plain", b"try /, /metrics, /healthz, /readyz or /state\n")

    def _probe(self, good: bool, yes: str, no: str) -> None:
        status = HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE
        self._answer(status, "text/plain", f"{yes if good else no}\n".encode())

    def _answer(self, status: int, kind: str, body: bytes, headers: Mapping[str, str] = {}) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Probes and scrapes are no news."""
