"""What clients can do to the gateway: leave, read nothing, send too much or too slowly, ask for what it does not do."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
from pathlib import Path

import pytest
import yaml

from tests.kit.conftest import KIT, Front, Program, breakers, infer, metric, until
from tests.kit.stub import Stub


def test_more_than_the_replicas_hold_is_refused_at_once(front: Front, stubs: list[Stub]) -> None:
    gateway = front("--most-per-replica", 2)
    for stub in stubs:
        stub.mode = "hang"
    asking = [threading.Thread(target=infer, args=(gateway,)) for _ in range(6)]
    for thread in asking:
        thread.start()
    until(lambda: sum(stub.served for stub in stubs) == 6)
    for _ in range(20):
        status, _, headers = gateway.request("POST", "/infer", b"x" * 1000)
        assert (status, headers["retry-after"]) == (503, "1")
    assert sum(stub.served for stub in stubs) == 6
    assert metric(gateway, "gateway_shed_total") == 20
    for stub in stubs:
        stub.release.set()
    for thread in asking:
        thread.join()


def test_a_client_that_reads_nothing_has_left_once_it_took_nothing_for_long_enough(
    front: Front, stubs: list[Stub]
) -> None:
    gateway = front("--read-s", 1, "--most-per-replica", 1)
    for stub in stubs:
        stub.mode = "flood"
    clients = [ask(gateway) for _ in range(3)]
    until(lambda: gateway.get("/status")["in_flight"] == 3)
    until(lambda: gateway.get("/status")["in_flight"] == 0)
    assert set(breakers(gateway).values()) == {"closed"}
    assert metric(gateway, "gateway_requests_total", 'code="499"') == 3
    for client in clients:
        client.close()


def test_a_client_that_reads_slowly_counts_against_no_replica(front: Front, stubs: list[Stub]) -> None:
    gateway = front("--read-s", 5, "--stream-s", 1, "--breaker-failures", 1, "--failures", "stream,timeout")
    for stub in stubs:
        stub.mode = "flood"
    for _ in range(3):
        with ask(gateway) as client, contextlib.suppress(ConnectionError):
            while client.recv(4096):
                time.sleep(0.01)
    assert set(breakers(gateway).values()) == {"closed"}
    assert metric(gateway, "gateway_attempts_total", 'outcome="long"') == 3


def test_one_clients_slow_requests_open_no_breakers_while_others_are_answered(front: Front, stubs: list[Stub]) -> None:
    gateway = front("--read-s", 0.3, "--breaker-failures", 1)
    slow = list[int]()

    def ask_slowly() -> None:
        slow.extend(gateway.request("POST", "/infer", b"slow")[0] for _ in range(4))

    asking = threading.Thread(target=ask_slowly)
    asking.start()
    while asking.is_alive():
        assert [infer(gateway) for _ in range(8)] == [200] * 8
        assert set(breakers(gateway).values()) == {"closed"}
    assert slow == [504] * 4


def test_a_replica_that_hangs_is_left_alone_even_where_no_client_waits_for_as_long_as_the_gateway(
    front: Front, stubs: list[Stub]
) -> None:
    gateway, hangs = front("--read-s", 1, "--breaker-s", 2), stubs[0]
    hangs.mode = "hang"

    def state() -> str:
        return breakers(gateway)[hangs.port]

    def was_answered() -> bool:
        asked, served = hangs.served, sum(stub.served for stub in stubs)
        with ask(gateway) as client:
            until(lambda: sum(stub.served for stub in stubs) > served)
            if hangs.served == asked:
                return client.recv(65536).split()[1] == b"200"
            time.sleep(0.2)
        until(lambda: hangs.left == hangs.served)
        return False

    def until_it_was_asked() -> None:
        while was_answered():
            pass

    for _ in range(10):
        if state() == "closed":
            until_it_was_asked()
    assert state() == "open"
    until(lambda: state() == "half_open")
    until_it_was_asked()
    assert state() == "open", "one on trial is enough"


def test_an_impatient_clients_slow_requests_open_no_breakers_while_others_are_answered(
    front: Front, stubs: list[Stub]
) -> None:
    gateway = front("--read-s", 3, "--breaker-failures", 1)
    slow = list[int]()

    def ask_impatiently() -> None:
        for _ in range(54):  # of 0.2 s, at three replicas: more than --read-s in all at each
            with contextlib.suppress(TimeoutError):
                slow.append(gateway.request("POST", "/infer", b"slow", timeout_s=0.2)[0])

    asking = threading.Thread(target=ask_impatiently)
    asking.start()
    while asking.is_alive():
        assert infer(gateway) == 200
        assert set(breakers(gateway).values()) == {"closed"}
    assert not slow


def test_a_replica_that_hangs_is_left_alone_however_long_anothers_answer_to_its_request_lasts(
    front: Front, stubs: list[Stub]
) -> None:
    gateway = front("--read-s", 2, "--breaker-failures", 1)
    stubs[0].mode, stubs[1].mode, stubs[2].mode = "hang", "events", "events"
    asked = 0
    with contextlib.ExitStack() as clients:
        while not stubs[0].served:
            asked, client = asked + 1, clients.enter_context(ask(gateway))
            while sum(stub.served for stub in stubs) < asked:
                time.sleep(0.01)
        assert client.recv(65536), "the other's answer has begun"
        assert breakers(gateway)[stubs[0].port] == "open"


@pytest.mark.parametrize("mode", ["hang", "stream", "flood"])
def test_a_client_that_leaves_ends_its_request(front: Front, stubs: list[Stub], mode: str) -> None:
    gateway = front("--most-per-replica", 1, "--breaker-failures", 1)
    for stub in stubs:
        stub.mode = mode
    clients = [ask(gateway) for _ in range(3)]
    until(lambda: sum(stub.served for stub in stubs) == 3)
    if mode != "hang":
        assert all(client.recv(12) == b"HTTP/1.1 200" for client in clients)
    for client in clients:
        client.close()
    until(lambda: gateway.get("/status")["in_flight"] == 0, 5)  # no time-out of the gateway's is that short
    until(lambda: sum(stub.left for stub in stubs) == 3, 5)
    assert metric(gateway, "gateway_requests_total", 'code="499"') == 3
    assert metric(gateway, "gateway_attempts_total", 'outcome="left"') == 3
    assert set(breakers(gateway).values()) == {"closed"}
    for stub in stubs:
        stub.mode = "ok"
    assert [infer(gateway) for _ in range(3)] == [200] * 3  # the places are free


def test_a_place_is_taken_when_the_body_is_there(front: Front, stubs: list[Stub]) -> None:
    gateway = front("--most-per-replica", 1)
    clients = [ask(gateway, b"Content-Length: 5", b"abc") for _ in range(3)]
    until(lambda: gateway.get("/status")["in_flight"] == 3)
    assert infer(gateway) == 200
    for client in clients:
        client.sendall(b"de")
        assert client.recv(12) == b"HTTP/1.1 200"
        client.close()
    assert sum(stub.bodies.count(b"abcde") for stub in stubs) == 3


def test_large_bodies_are_refused_before_the_memory_is_gone(front: Front, stubs: list[Stub]) -> None:
    """With a time to come back. The manifest gives twice what the bodies may take."""
    (deployment, *_) = yaml.safe_load_all((KIT / "gateway.yaml").read_text())
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert (container["resources"]["limits"]["memory"], "--bodies-mib=512" in container["command"]) == ("1Gi", True)
    gateway = front("--read-s", 30, "--bodies-mib", 64)
    idle_kib = memory_kib(gateway, "VmRSS")
    for stub in stubs:
        stub.mode = "hang"
    body, answers = b"x" * (16 << 20), list[tuple[int, bytes, dict[str, str]]]()
    asking = [
        threading.Thread(target=lambda: answers.append(gateway.request("POST", "/infer", body, timeout_s=120)))
        for _ in range(12)
    ]
    for thread in asking:
        thread.start()
    until(lambda: len(answers) + sum(stub.served for stub in stubs) == 12, 120)
    refused = answers[:]
    for stub in stubs:
        stub.mode = "ok"
        stub.release.set()
    for thread in asking:
        thread.join()
    assert 8 <= len(refused) < 12  # four have room; of those that come together some more are refused
    assert {(code, headers["retry-after"]) for code, _, headers in refused} == {(503, "1")}
    assert metric(gateway, "gateway_body_bytes") == 0
    assert memory_kib(gateway, "VmHWM") - idle_kib < 1.3 * (64 << 10)


def memory_kib(gateway: Program, name: str) -> int:
    lines = Path(f"/proc/{gateway.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


@pytest.mark.parametrize(
    "headers", [b"Connection: Upgrade\r\nUpgrade: websocket", b"Connection: Upgrade\r\nUpgrade: h2c"]
)
def test_other_protocols_are_refused_in_plain_words(front: Front, stubs: list[Stub], headers: bytes) -> None:
    with ask(front(), headers) as client:
        answer = all_of(client)
    assert answer.startswith(b"HTTP/1.1 501")
    assert b"no WebSocket, no h2c" in answer
    assert not sum(stub.served for stub in stubs)


@pytest.mark.parametrize(
    ("line", "said"), [(b"CONNECT example.com:443", b"no tunnel"), (b"OPTIONS *", b"must be a path")]
)
def test_what_names_no_path_is_refused_in_plain_words_and_counted(
    front: Front, stubs: list[Stub], line: bytes, said: bytes
) -> None:
    gateway = front()
    with socket.create_connection(("127.0.0.1", gateway.port()), timeout=10) as client:
        client.sendall(line + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = all_of(client)
    assert said in answer
    code = answer.split()[1].decode()
    assert metric(gateway, "gateway_requests_total", f'code="{code}"') == 1
    assert not sum(stub.served for stub in stubs)


def test_a_request_with_two_lengths_is_refused_and_its_connection_closed(front: Front, stubs: list[Stub]) -> None:
    """Whoever stands before or behind might take the other of the two, and the rest for a request."""
    smuggled = b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
    gateway = front()
    with ask(gateway, b"Content-Length: 5\r\nTransfer-Encoding: chunked", smuggled) as client:
        answer = all_of(client)
    assert "Traceback" not in gateway.text()
    assert answer.split()[1] == b"400"
    assert answer.count(b"HTTP/1.") == 1
    assert not sum(stub.served for stub in stubs)


def test_http_2_without_asking_is_refused_and_closed(front: Front) -> None:
    with socket.create_connection(("127.0.0.1", front().port())) as client:
        client.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        assert all_of(client).split()[1] == b"400"


def ask(gateway: Program, headers: bytes = b"Content-Length: 0", body: bytes = b"") -> socket.socket:
    """A POST whose answer nobody reads yet."""
    client = socket.create_connection(("127.0.0.1", gateway.port()), timeout=30)
    client.sendall(b"POST /infer HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n\r\n" + body)
    return client


def all_of(client: socket.socket) -> bytes:
    """Until the gateway closes the connection."""
    got = b""
    while part := client.recv(65536):
        got += part
    return got


def send_slowly(gateway: Program, parts: int, pause_s: float) -> int:
    """A body of which a byte comes after each pause; the status of the answer."""
    with socket.create_connection(("127.0.0.1", gateway.port()), timeout=30) as client:
        client.sendall(b"POST /infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % parts)
        for _ in range(parts):
            time.sleep(pause_s)
            try:
                client.sendall(b"x")
            except ConnectionError:
                break
        return int(client.recv(65536).split()[1])


def test_a_body_may_come_slowly_as_long_as_it_comes_and_not_for_ever(front: Front, stubs: list[Stub]) -> None:
    assert send_slowly(front("--read-s", 1), parts=8, pause_s=0.2) == 200
    assert send_slowly(front("--read-s", 1, "--total-s", 2), parts=15, pause_s=0.2) == 408


def test_a_body_that_never_comes_or_is_too_large_is_refused(front: Front, stubs: list[Stub]) -> None:
    gateway = front("--read-s", 0.3)
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port(), timeout=30)
    connection.putrequest("POST", "/infer")
    connection.putheader("Content-Length", "10")
    connection.endheaders(b"{")
    answer = connection.getresponse()
    answer.read()
    connection.close()
    assert answer.status == 408
    assert front().request("POST", "/infer", b"x" * ((16 << 20) + 1))[0] == 413
    assert not sum(stub.served for stub in stubs)
