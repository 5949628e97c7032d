"""What clients see through the gateway while replicas hang, fail, leave or are full."""

from __future__ import annotations

import http.client
import json
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from checkpoint import Folder
from gateway import listening, passed
from hypothesis import given, settings
from hypothesis import strategies as st
from model import FEATURES, model
from retry_budget import RetryBudget

from tests.kit.conftest import KIT, Program, Start, until


class Stub:
    """A replica that behaves as a test says."""

    def __init__(self) -> None:
        self.mode, self.served, self.bodies = "ok", 0, list[bytes]()
        self.release = threading.Event()
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                stub.served += 1
                stub.bodies.append(body)
                mode = stub.mode
                if mode == "hang":
                    stub.release.wait(60)
                    self.close_connection = True
                elif mode == "cut":  # in the middle of the answer
                    self.send_response(200)
                    self.send_header("Content-Length", "100")
                    self.end_headers()
                    self.wfile.write(b"half")
                    self.close_connection = True
                elif mode == "stream":
                    self.send_response(200)
                    self.send_header("Transfer-Encoding", "chunked")
                    self.end_headers()
                    self.wfile.write(b"5\r\nfirst\r\n")
                    stub.release.wait(60)
                    self.wfile.write(b"4\r\nlast\r\n0\r\n\r\n")
                else:
                    code = int(mode) if mode.isdigit() else 503 if mode == "full" else 200
                    self.send_response(code)
                    if mode == "full":
                        self.send_header("Retry-After", "1")
                    data = json.dumps({"port": stub.port, "headers": dict(self.headers)}).encode()
                    self.send_header("Content-Length", str(len(data)))
                    self.send_header("X-Replica", str(stub.port))
                    self.end_headers()
                    self.wfile.write(data)

            do_GET = do_POST  # noqa: N815 - http.server calls it so

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self.release.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def stubs() -> Iterator[list[Stub]]:
    made = [Stub() for _ in range(3)]
    yield made
    for one in made:
        one.close()


Front = Callable[..., Program]


@pytest.fixture
def front(start: Start, stubs: list[Stub]) -> Front:
    def begin(*extra: object, replicas: str = "") -> Program:
        names = replicas or ",".join(f"127.0.0.1:{stub.port}" for stub in stubs)
        gateway = start("gateway.py", "--replicas", names, "--port", 0, "--linger-s", 0.2, *extra)
        until(lambda: gateway.request("GET", "/readyz")[0] == 200)
        return gateway

    return begin


def infer(gateway: Program, path: str = "/infer") -> int:
    return gateway.request("POST", path, {"inputs": []})[0]


def metric(gateway: Program, name: str) -> float:
    lines = gateway.request("GET", "/metrics")[1].decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.split("{")[0].split(" ")[0] == name)


def fill(gateway: Program, requests: int = 100) -> None:
    """Traffic, so that the budget allows retries."""
    for _ in range(requests):
        gateway.request("GET", "/warm")


def breakers(gateway: Program) -> dict[int, str]:
    return {int(name.split(":")[1]): told["breaker"] for name, told in gateway.get("/status")["replicas"].items()}


def test_a_request_passes_as_it_came(front: Front, stubs: list[Stub]) -> None:
    gateway = front()
    status, body, headers = gateway.request(
        "POST", "/infer?a=%2Fb&c", b"\x00\xff", {"X-Own": "kept", "Connection": "x-hop", "X-Hop": "1", "Accept": "a/b"}
    )
    told = {name.lower(): value for name, value in json.loads(body)["headers"].items()}
    assert status == 200
    assert (told["x-own"], told["accept"], told["x-forwarded-for"]) == ("kept", "a/b", "127.0.0.1")
    assert "x-hop" not in told
    assert headers["x-replica"] in {str(stub.port) for stub in stubs}
    assert [stub.bodies for stub in stubs if stub.bodies] == [[b"\x00\xff"]]


def test_five_failures_open_a_replicas_breaker_and_one_request_tries_it_again(front: Front, stubs: list[Stub]) -> None:
    gateway = front("--breaker-s", 2)
    fill(gateway)
    stubs[0].mode, stubs[0].served = "500", 0
    while stubs[0].served < 5:
        assert infer(gateway) == 200  # repeated elsewhere
    assert breakers(gateway)[stubs[0].port] == "open"
    for _ in range(20):
        assert infer(gateway) == 200
    assert stubs[0].served == 5
    until(lambda: breakers(gateway)[stubs[0].port] == "half_open")
    stubs[0].mode = "hang"  # on trial: however many come, one is sent there
    asking = [threading.Thread(target=infer, args=(gateway,)) for _ in range(12)]
    for thread in asking:
        thread.start()
    until(lambda: stubs[0].served == 6)
    for _ in range(10):
        assert infer(gateway) == 200
    assert stubs[0].served == 6
    stubs[0].release.set()
    for thread in asking:
        thread.join()
    assert breakers(gateway)[stubs[0].port] == "open"
    stubs[0].mode = "ok"
    until(lambda: infer(gateway) == 200 and breakers(gateway)[stubs[0].port] == "closed")


def test_a_replica_that_hangs_costs_its_read_timeout_and_no_failure(front: Front, stubs: list[Stub]) -> None:
    gateway = front("--read-s", 0.3)
    fill(gateway)
    stubs[0].mode = "hang"
    for _ in range(60):
        assert infer(gateway) == 200
    assert breakers(gateway)[stubs[0].port] == "open"


def test_a_replica_that_is_gone_costs_nothing_whatever_the_method(front: Front, stubs: list[Stub]) -> None:
    gateway = front()
    fill(gateway)
    stubs[0].close()
    for _ in range(30):
        assert infer(gateway, "/not-repeatable") == 200
    stubs[0] = Stub()  # for the fixture to close


def test_what_was_sent_and_may_not_be_repeated_is_not(front: Front, stubs: list[Stub]) -> None:
    gateway = front()
    fill(gateway)
    for stub in stubs:
        stub.mode, stub.served = "500", 0
    assert infer(gateway, "/order") == 500
    assert sum(stub.served for stub in stubs) == 1
    assert infer(gateway) == 500
    assert sum(stub.served for stub in stubs) == 4  # on each replica once


def test_retries_stay_under_the_budget_while_everything_fails(front: Front, stubs: list[Stub]) -> None:
    gateway = front("--breaker-failures", 1_000_000)
    for stub in stubs:
        stub.mode = "500"
    for _ in range(200):
        assert infer(gateway) == 500
    sent = sum(stub.served for stub in stubs)
    assert 200 < sent <= 240
    assert metric(gateway, "gateway_retries_total") == sent - 200
    assert metric(gateway, "gateway_retries_refused_total") > 0


@given(st.lists(st.booleans(), max_size=400))
@settings(max_examples=50, deadline=None)
def test_the_budget_is_a_share_of_the_requests(events: list[bool]) -> None:
    budget, requests, retries = RetryBudget(0.2, 1000), 0, 0
    for is_request in events:
        if is_request:
            budget.count()
            requests += 1
        else:
            allowed = budget.take()
            assert allowed == (retries + 1 <= 0.2 * requests)
            retries += allowed
    assert budget.totals() == (requests, retries)


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


def test_a_replica_that_is_full_is_no_failure_of_it(front: Front, stubs: list[Stub]) -> None:
    gateway = front()
    fill(gateway)
    stubs[0].mode = "full"
    for _ in range(30):
        assert infer(gateway, "/order") == 200  # refused unread: even this may go elsewhere
    assert breakers(gateway)[stubs[0].port] == "closed"


def test_a_stream_arrives_as_it_is_made(front: Front, stubs: list[Stub]) -> None:
    gateway = front()
    for stub in stubs:
        stub.mode = "stream"
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port(), timeout=30)
    connection.request("POST", "/infer/stream", b"{}")
    answer = connection.getresponse()
    assert answer.read1() == b"first"  # while the replica still computes
    for stub in stubs:
        stub.release.set()
    assert answer.read() == b"last"
    connection.close()


def test_an_answer_that_breaks_off_is_not_passed_as_whole_and_not_repeated(front: Front, stubs: list[Stub]) -> None:
    gateway = front()
    fill(gateway)
    for stub in stubs:
        stub.mode, stub.served = "cut", 0
    with pytest.raises(http.client.IncompleteRead):
        infer(gateway)
    assert sum(stub.served for stub in stubs) == 1


def test_a_client_that_reads_nothing_holds_its_place_until_the_deadline_only(front: Front, stubs: list[Stub]) -> None:
    gateway = front("--total-s", 1, "--most-per-replica", 1)
    for stub in stubs:
        stub.mode = "stream"
    clients = [socket.create_connection(("127.0.0.1", gateway.port())) for _ in range(3)]
    for client in clients:
        client.sendall(b"POST /infer HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
    until(lambda: gateway.get("/status")["in_flight"] == 3)
    until(lambda: gateway.get("/status")["in_flight"] == 0)
    assert set(breakers(gateway).values()) == {"closed"}
    for client in clients:
        client.close()


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


def test_out_of_gpu_memory_goes_to_the_smaller_model(start: Start, tmp_path: Path) -> None:
    """Real replicas: the large model's is really out of memory."""
    replicas = []
    for width in (256, 8):
        folder = Folder(tmp_path / str(width))
        folder.claim()
        folder.save(width, model(width).dump())
        replicas.append(start("inference.py", "--folder", folder.path, "--width", width, "--port", 0))
        until(lambda: replicas[-1].request("GET", "/readyz")[0] == 200)
    large, small = replicas
    pages = int(Path(f"/proc/{large.process.pid}/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + (60 << 20)
    resource.prlimit(large.process.pid, resource.RLIMIT_AS, (most, most))
    gateway = start(
        "gateway.py", "--port", 0, "--replicas", f"127.0.0.1:{large.port()}", "--smaller", f"127.0.0.1:{small.port()}"
    )
    until(lambda: gateway.request("GET", "/readyz")[0] == 200)
    row = [0.5] * FEATURES
    assert json.loads(gateway.request("POST", "/infer", {"inputs": [row]})[1])["step"] == 256
    status, body, _ = gateway.request("POST", "/infer", {"inputs": [row] * 100_000})
    assert (status, json.loads(body)["step"]) == (200, 8)
    assert metric(gateway, "gateway_fallbacks_total") == 1
    assert metric(gateway, "gateway_replica_breaker_open") == 0
    small.end()
    status, body, _ = gateway.request("POST", "/infer", {"inputs": [row] * 100_000})
    assert status in (502, 507)
    assert json.loads(gateway.request("POST", "/infer", {"inputs": [row]})[1])["step"] == 256


def test_on_sigterm_it_is_not_ready_serves_on_and_ends_what_runs(front: Front, stubs: list[Stub]) -> None:
    gateway = front("--linger-s", 2)
    port = gateway.port()
    for stub in stubs:
        stub.mode = "stream"
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", "/infer/stream", b"{}")
    answer = connection.getresponse()
    assert answer.read1() == b"first"
    gateway.signal(signal.SIGTERM)
    until(lambda: gateway.request("GET", "/readyz")[0] == 503)
    for stub in stubs:
        stub.mode = "ok"
    assert infer(gateway) == 200

    def deaf() -> bool:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
        except ConnectionError:
            return True
        return False

    until(deaf)
    for stub in stubs:
        stub.release.set()
    assert answer.read() == b"last"
    connection.close()
    assert gateway.process.wait(30) == 0


def test_replicas_of_a_headless_service_are_followed_as_they_come_and_go(start: Start, tmp_path: Path) -> None:
    """The name in a hosts file of the gateway's own, which stands for the cluster's DNS."""
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.2 replicas.example\n127.0.0.3 replicas.example\n")
    log = tmp_path / "log"
    bound = ["unshare", "--mount", "sh", "-c", 'mount --bind "$1" /etc/hosts && shift && exec "$@"', "sh", str(hosts)]
    arguments = ["--replicas", "replicas.example:9", "--port", "0", "--resolve-s", "0.1"]
    with log.open("wb") as out:
        gateway = subprocess.Popen(
            [*bound, sys.executable, str(KIT / "gateway.py"), *arguments], stdout=out, stderr=out
        )
    try:
        port = until(lambda: log.read_text().rpartition("port ")[2].strip())

        def replicas() -> Any:
            connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=10)
            connection.request("GET", "/status")
            told = json.loads(connection.getresponse().read())["replicas"]
            connection.close()
            return set(told)

        until(lambda: replicas() == {"127.0.0.2:9", "127.0.0.3:9"})
        hosts.write_text("127.0.0.3 replicas.example\n127.0.0.4 replicas.example\n")
        until(lambda: replicas() == {"127.0.0.3:9", "127.0.0.4:9"})
        hosts.write_text("")  # a name that is gone for a moment: the replicas may live
        time.sleep(0.5)
        assert replicas() == {"127.0.0.3:9", "127.0.0.4:9"}
    finally:
        gateway.terminate()
        gateway.wait(30)


def test_headers_of_one_connection_stay_on_it() -> None:
    headers = [(b"Connection", b"close, X-Secret"), (b"X-Secret", b"1"), (b"TE", b"x"), (b"X-Own", b"2")]
    assert passed(headers) == [(b"x-own", b"2")]


def test_breakers_and_budget_are_usable_without_the_gateways_libraries() -> None:
    use = """
import asyncio, sys
from replicas import FailedError, Limits, Pool
from retry_budget import RetryBudget
pool, budget = Pool("127.0.0.1:9,127.0.0.2:9", Limits(failures=1)), RetryBudget(0.5, 10)
asyncio.run(pool.resolve())
first = pool.pick([])
with first.use():
    first.note(FailedError(502, "gone", True))
budget.count(); budget.count()
assert budget.take() and not budget.take()
assert pool.pick([]) is not first and first.summary()["breaker"] == "open"
assert not {"aiohttp", "starlette", "uvicorn", "prometheus_client"} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", use], cwd=KIT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_nothing_waits_for_a_clients_word_on_a_kept_connection() -> None:
    with (
        listening(0) as listener,
        socket.create_connection(listener.getsockname()[:2]),
        listener.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
