"""A pod's checkpoint port is hostile: whatever it does, a call ends in time, and nothing else waits for it."""

from __future__ import annotations

import contextlib
import itertools
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from agent.actions.checkpoint import Calls, post
from agent.actions.kube import KubeClient
from agent.model.steps import AskCheckpoint
from agent.model.world import Local
from agent.remediation.plan import plan
from tests.actions.test_kube import cluster, drive
from tests.actions.test_pods import annotate, change, config, reset, said
from tests.scarce import no_threads
from tests.waiting import until

ANSWER_S = 0.2
MARGIN_S = 0.3  # of a busy machine
SAVED, SAVING = b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 202 Accepted\r\n\r\n"
CONTINUE, HINTS = b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
REDIRECT = b"HTTP/1.1 307 Away\r\nLocation: http://127.0.0.1:%d/\r\nContent-Length: 0\r\n\r\n"


class Server:
    """A pod's port that says something, and then something else again and again for a second."""

    def __init__(self, first: bytes, then: bytes, pause_s: float) -> None:
        self._first, self._then, self._pause_s = first, then, pause_s
        self._over = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self._listener.getsockname()[1]
        self.connections: list[socket.socket] = []
        self.requests: list[bytes] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while not self._over.is_set():
            try:
                connection = self._listener.accept()[0]
            except OSError:
                return
            self.connections.append(connection)
            self._threads.append(threading.Thread(target=self._talk, args=(connection,)))
            self._threads[-1].start()

    def _talk(self, connection: socket.socket) -> None:
        due = time.monotonic() + 1
        try:
            self.requests.append(connection.recv(65536))
            connection.sendall(self._first)
            while time.monotonic() < due and not self._over.wait(self._pause_s):
                connection.sendall(self._then)
        except OSError:
            pass
        connection.close()

    def stop(self) -> None:
        self._over.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listener.close()


Serve = Callable[..., Server]


@pytest.fixture
def serve() -> Iterator[Serve]:
    servers: list[Server] = []

    def start(first: bytes = b"", then: bytes = b"", pause_s: float = 0.02) -> Server:
        servers.append(Server(first, then, pause_s))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()
    until(lambda: not callers())


def callers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "checkpoint"]


def timed_post(port: int) -> tuple[tuple[bool, str], float]:
    began = time.monotonic()
    answer = post("127.0.0.1", port, "/save", ANSWER_S)
    return answer, time.monotonic() - began


@pytest.mark.parametrize(
    ("first", "then", "pause_s"),
    [
        (b"", b"", 0.02),
        (b"", CONTINUE, 0.02),
        (b"", HINTS, 0.02),
        (b"", b"x", 0.02),
        (b"HTTP/1.1 200 ", b"x", 0.02),
        (b"HTTP/1.1 200 OK\r\n", b"x", 0.02),
        (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n", 0.02),
    ],
    ids=["silence", "continue", "hints", "status", "reason", "header", "headers"],
)
def test_a_port_that_speaks_for_ever_is_left_at_the_deadline(
    serve: Serve, first: bytes, then: bytes, pause_s: float
) -> None:
    server = serve(first, then, pause_s)
    answer, took_s = timed_post(server.port)
    assert answer == (False, f"its port {server.port} does not answer (TimeoutError)")
    assert ANSWER_S - 0.01 <= took_s < ANSWER_S + MARGIN_S


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (b"", CONTINUE),
        (b"", b"x" * 4096),
        (b"HTTP/1.1 200 OK\r\n", b"X: " + b"y" * 60000 + b"\r\n"),
        (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 100),
    ],
    ids=["continue", "status", "header", "headers"],
)
def test_no_more_is_read_than_the_head_of_an_answer_may_hold(serve: Serve, first: bytes, then: bytes) -> None:
    server = serve(first, then, pause_s=0)
    answer, took_s = timed_post(server.port)
    assert answer == (False, f"its port {server.port} does not answer (LineTooLong)")
    assert took_s < ANSWER_S


def test_a_port_that_accepts_nobody_is_left_at_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, socket.socket() as one, socket.socket() as two:
        for other in (one, two):  # they fill its backlog: from now on nobody is let in
            other.setblocking(False)
            other.connect_ex(listener.getsockname())
        port = listener.getsockname()[1]
        answer, took_s = timed_post(port)
    assert answer == (False, f"its port {port} does not answer (TimeoutError)")
    assert ANSWER_S - 0.01 <= took_s < ANSWER_S + MARGIN_S


def test_a_port_that_resets_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def resets() -> None:
            connection = listener.accept()[0]
            connection.recv(65536)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()

        thread = threading.Thread(target=resets)
        thread.start()
        port = listener.getsockname()[1]
        assert timed_post(port)[0] == (False, f"its port {port} does not answer (ConnectionResetError)")
        thread.join()


def test_a_redirect_is_an_answer_and_leads_nowhere(serve: Serve) -> None:
    elsewhere = serve(SAVED)
    assert timed_post(serve(REDIRECT % elsewhere.port).port)[0] == (False, "it answered 307")
    assert elsewhere.connections == []


@pytest.mark.parametrize(
    ("first", "then", "answer"),
    [
        (SAVED, b"", (True, "")),
        (SAVED, b"x" * 65536, (True, "")),
        (CONTINUE + HINTS + SAVED, b"", (True, "")),
        (b"HTTP/1.0 200 OK\n\n", b"", (True, "")),
        (SAVING, b"", (False, "it is saving")),
        (b"HTTP/1.1 503 Busy\r\nRetry-After: 5\r\n\r\n", b"", (False, "it answered 503")),
    ],
)
def test_an_answer_is_its_status_and_no_end_of_a_body_is_waited_for(
    serve: Serve, first: bytes, then: bytes, answer: tuple[bool, str]
) -> None:
    told, took_s = timed_post(serve(first, then, pause_s=0.001).port)
    assert told == answer
    assert took_s < ANSWER_S


@pytest.mark.parametrize("words", [b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 2000 OK\r\n\r\n", b"HTTP/2 200\r\n\r\n", b"\r\n"])
def test_what_is_no_answer_in_http_is_none(serve: Serve, words: bytes) -> None:
    server = serve(words)
    assert timed_post(server.port)[0] == (False, f"its port {server.port} does not answer (BadStatusLine)")


def test_a_pod_is_asked_once_at_a_time_and_no_thread_outlives_its_call(serve: Serve) -> None:
    server, calls = serve(), Calls(ANSWER_S)
    began = time.monotonic()
    for _ in range(10):
        calls.ask("uid", "127.0.0.1", server.port, "/save")
    assert time.monotonic() - began < ANSWER_S / 2
    assert (calls.asking, calls.answer("uid")) == (True, (False, ""))
    until(lambda: not calls.asking)
    assert calls.answer("uid") == (False, f"its port {server.port} does not answer (TimeoutError)")
    assert len(server.connections) == 1
    until(lambda: not callers())


def test_a_pod_that_has_saved_is_not_asked_again_and_one_that_is_saving_is(serve: Serve) -> None:
    saved, saving, calls = serve(SAVED), serve(SAVING), Calls(ANSWER_S)
    for _ in range(2):
        calls.ask("a", "127.0.0.1", saved.port, "/save")
        calls.ask("b", "127.0.0.1", saving.port, "/save")
        until(lambda: not calls.asking)
        assert (calls.answer("a"), calls.answer("b")) == ((True, ""), (False, "it is saving"))
    assert (len(saved.connections), len(saving.connections)) == (1, 2)


def test_of_a_crowd_of_ports_that_hang_each_has_its_turn_with_few_threads(serve: Serve) -> None:
    answer_s = 3 * ANSWER_S  # the port closes after a second, and a busy machine needs a while for 32 of them
    server, calls = serve(), Calls(answer_s)
    for number in range(100):
        calls.ask(str(number), "127.0.0.1", server.port, f"/{number}")
        if number == 31:
            until(lambda: len(server.requests) == 32)
    assert len(callers()) == 32
    until(lambda: not calls.asking)
    assert all("TimeoutError" in calls.answer(str(number))[1] for number in range(100))
    paths = [request.split()[1] for request in server.requests]
    assert len(paths) == 100
    assert paths.index(b"/32") < paths.index(b"/99"), "who waited first is asked first"


def test_a_pod_that_is_gone_is_asked_no_more_and_its_late_answer_is_nobodys(serve: Serve) -> None:
    hangs, calls = serve(b"", SAVED, pause_s=0.1), Calls(ANSWER_S)
    late = serve(SAVED)
    for number in range(32):
        calls.ask(str(number), "127.0.0.1", hangs.port, "/save")
    calls.ask("late", "127.0.0.1", late.port, "/save")
    calls.forget_others({"1"})
    until(lambda: not callers())
    assert [number for number in range(32) if calls.answer(str(number))[0]] == [1]
    assert (calls.answer("late"), late.connections) == ((False, ""), [])
    calls.forget_others(())
    assert calls.answer("1") == (False, "")


def test_without_a_thread_to_ask_it_a_pod_is_said_and_is_asked_later(serve: Serve) -> None:
    server, calls = serve(SAVED), Calls(ANSWER_S)
    with no_threads(Calls):
        calls.ask("uid", "127.0.0.1", server.port, "/save")
    assert (calls.asking, calls.answer("uid")) == (False, (False, "the agent could start no thread to ask it"))
    calls.ask("uid", "127.0.0.1", server.port, "/save")
    until(lambda: calls.answer("uid")[0])


def test_ports_that_hang_are_all_asked_at_once_and_no_other_pod_of_the_node_waits_for_them(serve: Serve) -> None:
    made, settings, server = cluster(), config(), serve()
    for number in range(4):
        made.add_pod("research", f"hangs-{number}", "n1", owner="Job")
        made.add_pod("research", f"other-{number}", "n1", owner="Job")
    hanging = ["train", *(f"hangs-{number}" for number in range(4))]
    for name in hanging:
        annotate(made, name, checkpoint=f"http:{server.port}/save")
        change(made, name, {"status": {"podIP": "127.0.0.1"}})
    client = KubeClient(made, "n1", settings, answer_s=ANSWER_S)
    for asked in itertools.count():
        steps = plan(reset(), client.look(closely=True), settings, Local()).steps
        for step in steps:
            began = time.monotonic()
            client.do(step)
            assert time.monotonic() - began < ANSWER_S / 2
        if any(isinstance(step, AskCheckpoint) for step in steps):
            break
        assert asked < 5
    assert sorted(made.evicted) == [f"research/other-{number}" for number in range(4)], "in the same round"
    until(lambda: len(server.connections) == 5)
    assert len(said(client, reset(), settings)) == 5
    until(lambda: not client.asking)
    assert sorted(said(client, reset(), settings)) == sorted(
        f"pod research/{name} has 60 s to save its checkpoint: its port {server.port} does not answer (TimeoutError)"
        for name in hanging
    )


def test_an_answer_that_comes_after_its_pod_was_replaced_is_not_the_successors(serve: Serve) -> None:
    made, settings = cluster(), config()
    server = serve(b"", SAVED, pause_s=0.1)

    def declare() -> None:
        annotate(made, "train", checkpoint=f"http:{server.port}/save")
        change(made, "train", {"status": {"podIP": "127.0.0.1"}})

    declare()
    client = KubeClient(made, "n1", settings)
    drive(client, reset(), settings, rounds=3)
    assert client.asking
    assert made("DELETE", "/api/v1/namespaces/research/pods/train")[0] == 200
    made.add_pod("research", "train", "n1", owner="Job")
    declare()
    client.look(closely=True)
    until(lambda: not callers())
    assert [pod.saved for pod in client.look(closely=True).pods or () if pod.name == "train"] == [False]
    assert made.evicted == []
