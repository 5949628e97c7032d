"""HTTP as rude clients use it, and hostile ones."""

from __future__ import annotations

import contextlib
import http.client
import socket
import struct
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry

from agent.config.settings import Http
from agent.status.server import Server
from tests.waiting import LATEST_S, until

MOST, MOST_UNSENT = 512, 64
LARGE = {"filler": "x" * 10_000_000}  # more than the sockets hold


@contextlib.contextmanager
def listening(state: Callable[[], dict[str, Any]] = dict, connection_s: float = 60.0) -> Iterator[Server]:
    address = Http(address="127.0.0.1", port=0)
    server = Server(address, CollectorRegistry(), state, lambda: True, lambda: True, connection_s)
    server.start()
    try:
        yield server
    finally:
        server.shutdown()


def connected(server: Server, said: bytes = b"") -> socket.socket:
    client = socket.create_connection(("127.0.0.1", server.port), 20)
    client.sendall(said)
    return client


def asked(server: Server, said: bytes) -> bytes:
    """The whole answer."""
    with connected(server, said) as client:
        return b"".join(iter(partial(client.recv, 65536), b""))


def healthy(server: Server) -> bool:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/healthz", timeout=20) as answer:
        return bool(answer.status == 200)


def hung_up(client: socket.socket) -> bool:
    try:
        return not client.recv(1)
    except ConnectionResetError:
        return True


def test_a_client_that_hangs_up_leaves_no_word_in_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def state() -> dict[str, str]:
        asked.set()
        go_on.wait(LATEST_S)
        return LARGE

    with listening(state) as server:
        client = connected(server, b"GET /state HTTP/1.0\r\n\r\n")
        assert asked.wait(LATEST_S)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()  # with a reset
        go_on.set()
        assert healthy(server)
        until(lambda: server.connections == (0, 0))
    assert capfd.readouterr().err == ""


def test_a_client_that_comes_while_the_server_stops_is_no_trouble() -> None:
    class Slow:
        """Its thread gets a turn before the listener is shut down."""

        def __init__(self, server: Server) -> None:
            self._server, self._listener = server, server._listener

        def shutdown(self, how: int) -> None:
            connected(self._server).close()
            self._server._thread.join(0.2)
            self._listener.shutdown(how)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._listener, name)

    with listening() as server:
        server._listener = cast("socket.socket", Slow(server))


def test_any_number_of_idle_clients_keeps_no_probe_out_and_costs_no_more_than_a_few() -> None:
    with listening() as server, contextlib.ExitStack() as crowd:
        clients = [crowd.enter_context(connected(server)) for _ in range(MOST + 100)]
        assert healthy(server)
        assert server.connections[0] <= MOST
        assert hung_up(clients[0]), "the oldest gives way"
        clients[-1].sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert clients[-1].recv(12) == b"HTTP/1.0 200", "the youngest is still there"


def test_an_answer_under_way_gives_way_last() -> None:
    with listening(lambda: LARGE) as server, contextlib.ExitStack() as crowd:
        scrape = connected(server, b"GET /state HTTP/1.0\r\n\r\n")
        assert scrape.recv(5) == b"HTTP/"
        for _ in range(MOST + 100):
            crowd.enter_context(connected(server))
        assert healthy(server)
        assert sum(map(len, iter(partial(scrape.recv, 65536), b""))) > 10_000_000
        scrape.close()


def test_clients_that_never_read_their_answers_keep_no_probe_out() -> None:
    with listening(lambda: LARGE) as server, contextlib.ExitStack() as crowd:
        for _ in range(MOST_UNSENT + 20):
            crowd.enter_context(connected(server, b"GET /state HTTP/1.0\r\n\r\n"))
        assert healthy(server)
        assert server.connections[1] == MOST_UNSENT


def test_however_often_it_is_asked_for_an_answer_is_made_seldom() -> None:
    made = list[float]()

    def state() -> dict[str, str]:
        began = time.thread_time()
        while time.thread_time() - began < 0.02:
            pass
        made.append(began)
        return {}

    with listening(state) as server:
        for _ in range(100):
            asked(server, b"GET /state HTTP/1.0\r\n\r\n")
        busy, took = len(made), 100 * 0.02
        assert busy * 0.02 < took / 2


@pytest.mark.parametrize("each", [b"", b"G", b"GET / HTTP/1.0\r\nX: "])
def test_a_connection_has_its_time_in_all_however_slowly_it_asks(each: bytes) -> None:
    with listening(connection_s=0.3) as server, connected(server, each) as client:
        client.settimeout(0.05)
        due = time.monotonic() + 20
        while server.connections[0] and time.monotonic() < due:
            with contextlib.suppress(OSError):
                client.sendall(b"a")
            time.sleep(0.05)
        assert server.connections == (0, 0)


@pytest.mark.parametrize("reads", [0, 1])
def test_a_connection_has_its_time_in_all_however_slowly_it_reads(reads: int) -> None:
    asked = threading.Event()

    def state() -> dict[str, str]:
        asked.set()
        return LARGE

    with listening(state, 0.5) as server, connected(server, b"GET /state HTTP/1.0\r\n\r\n") as client:
        assert asked.wait(LATEST_S)
        due = time.monotonic() + 20
        while server.connections[0] and time.monotonic() < due:
            client.recv(reads) if reads else None
            time.sleep(0.05)
        assert server.connections == (0, 0)


def test_a_head_without_end_is_refused_before_it_takes_memory() -> None:
    line = b"X: " + b"a" * 1000 + b"\r\n"
    with listening() as server:
        assert asked(server, b"GET / HTTP/1.1\r\n" + 9 * line).startswith(b"HTTP/1.0 431")
        assert asked(server, b"GET / HTTP/1.1\r\n" + 9 * line + b"\r\n").startswith(b"HTTP/1.0 431")
        with connected(server, b"GET / HTTP/1.1\r\n") as flood, pytest.raises(ConnectionError):
            flood.sendall(100_000 * line)


MALFORMED = [
    b"\r\n\r\n",
    b"GARBAGE\r\n\r\n",
    b"GET\r\n\r\n",
    b"GET / HTTP/x.y\r\n\r\n",
    b"GET / HTTP/1.\xb2\r\n\r\n",
    b"GET / HTTP/1.1.1\r\n\r\n",
    b"GET / FTP/1.0\r\n\r\n",
    b"GET /healthz HTTP/0.9\r\n\r\n",
    b"HEAD /healthz HTTP/0.9\r\n\r\n",
    b"POST /\r\n\r\n",
    b"\xff\xfe\x00 / \x00\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",  # as TLS begins
]


@pytest.mark.parametrize("said", MALFORMED)
def test_a_malformed_request_ends_in_400_and_without_a_word_in_the_log(
    capfd: pytest.CaptureFixture[str], said: bytes
) -> None:
    with listening() as server:
        answer = asked(server, said)
        assert answer.startswith(b"HTTP/1.0 400")
        assert b"loop" not in answer
        assert healthy(server)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 70000\r\n\r\n" + b"x" * 50_000, b"501"),
        (b"DELETE / HTTP/1.1\r\n\r\n", b"501"),
        (b"GET /etc/passwd HTTP/1.1\r\n\r\n", b"404"),
        (b"GET /%2e%2e/metrics HTTP/1.1\r\n\r\n", b"404"),
        (b"GET / HTTP/2.0\r\n\r\n", b"505"),
        (b"GET /healthz HTTP/1.1\nHost: x\n\n", b"200"),
        (b"GET /healthz HTTP/1.1\r\nContent-Length: 9\r\n\r\n123456789", b"200"),
        (b"GET /healthz HTTP/1.1\r\n\r\nGET /state HTTP/1.1\r\n\r\n", b"200"),
    ],
)
def test_an_odd_request_is_answered_once(capfd: pytest.CaptureFixture[str], said: bytes, status: bytes) -> None:
    with listening() as server:
        answer = asked(server, said)
        assert answer.startswith(b"HTTP/1.0 " + status)
        assert answer.count(b"HTTP/1.0 ") == 1
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("path", ["/", "/metrics", "/healthz", "/readyz", "/state", "/none"])
def test_head_is_get_without_the_body(path: str) -> None:
    state = {"status": "unknown", "faults": [], "waits": ["no verdict yet"]}
    with listening(lambda: state) as server:
        got = asked(server, b"GET %b HTTP/1.0\r\n\r\n" % path.encode())
        head = asked(server, b"HEAD %b HTTP/1.0\r\n\r\n" % path.encode())
    lines, _, body = got.partition(b"\r\n\r\n")
    assert b"Content-Length: %d" % len(body) in lines

    def undated(text: bytes) -> list[bytes]:
        return [line for line in text.split(b"\r\n") if line and not line.startswith(b"Date:")]

    assert undated(head) == undated(lines)


def test_a_client_that_keeps_its_connection_is_told_that_it_ends_and_goes_on() -> None:
    with listening(lambda: {"status": "healthy"}) as server:
        client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        for _ in range(3):
            client.request("GET", "/state", headers={"Connection": "keep-alive"})
            answer = client.getresponse()
            assert (answer.status, b"healthy" in answer.read()) == (200, True)
        client.close()


def test_a_bug_is_told_and_answered_with_500(capfd: pytest.CaptureFixture[str]) -> None:
    def state() -> dict[str, Any]:
        raise RuntimeError("a bug")

    with listening(state) as server:
        assert asked(server, b"GET /state HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.0 500")
        assert healthy(server)
    assert "RuntimeError: a bug" in capfd.readouterr().err
