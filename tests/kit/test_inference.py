"""A replica serves what was trained, says what is wrong with it, and leaves without failing a request."""

from __future__ import annotations

import http.client
import json
import resource
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoint import Folder
from inference import Handler, Replica, Server
from model import FEATURES, LostGpuError, NumpyModel, OutOfMemoryError, model

from tests.kit.conftest import Program, Start, until
from tests.waiting import LATEST_S

ROW = [0.5] * FEATURES


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A folder with two checkpoints, of which the newer is torn."""
    folder, learner = Folder(tmp_path / "run"), model(256)
    folder.claim()
    for step in (10, 20, 30):
        for one in range(step - 10, step):
            learner.train(one)
        folder.save(step, learner.dump)
    file = folder.file(folder.numbers()[0])
    file.write_bytes(file.read_bytes()[:1000])
    return tmp_path / "run"


def serve(start: Start, folder: Path, *extra: object) -> Program:
    replica = start("inference.py", "--folder", folder, "--port", 0, "--again-s", 0.05, *extra)
    until(lambda: replica.request("GET", "/healthz")[0] == 200)
    return replica


def ready(replica: Program) -> bool:
    return replica.request("GET", "/readyz")[0] == 200


def test_it_serves_the_newest_whole_checkpoint(start: Start, trained: Path) -> None:
    replica = serve(start, trained)
    until(lambda: ready(replica))
    status, body, _ = replica.request("POST", "/infer", {"inputs": [ROW, ROW]})
    learner = model(256)
    Folder(trained).restore(learner.load)
    assert status == 200
    assert (json.loads(body)["step"], json.loads(body)["outputs"]) == (20, learner.infer([ROW, ROW]))
    lines = replica.request("POST", "/infer/stream", {"inputs": [ROW] * 5})[1].splitlines()
    assert [json.loads(line)["output"] for line in lines] == learner.infer([ROW]) * 5
    assert b'inference_requests_total{code="200"} 2' in replica.request("GET", "/metrics")[1]


def test_without_a_checkpoint_it_lives_but_is_not_ready(start: Start, tmp_path: Path) -> None:
    replica = serve(start, tmp_path / "run")
    assert not ready(replica)
    assert replica.request("POST", "/infer", {"inputs": [ROW]})[0] == 503
    folder = Folder(tmp_path / "run")
    folder.claim()
    folder.save(0, model(256).dump)
    until(lambda: ready(replica))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'{"inputs": 1}',
        b'{"inputs": [["x"]]}',
        b'{"inputs": []}',
        b"[" * 100_000,
        b'{"inputs": [[1,2,3]]}',
        b'{"inputs": [[1,1,1,1,1,1,1,NaN]]}',
        b'{"inputs": {"a": 1}}',
        b"\xff\xfe",
    ],
)
def test_a_malformed_request_is_refused_and_the_next_served(start: Start, trained: Path, body: bytes) -> None:
    replica = serve(start, trained)
    until(lambda: ready(replica))
    for path in ("/infer", "/infer/stream"):
        assert replica.request("POST", path, body)[0] == 400
    assert replica.request("POST", "/infer", b"", {"Content-Length": "99999999999"})[0] == 413
    assert replica.request("POST", "/infer", {"inputs": [ROW]})[0] == 200


def test_out_of_memory_is_said_and_survived(start: Start, trained: Path) -> None:
    replica = serve(start, trained)
    until(lambda: ready(replica))
    used = int((Path(f"/proc/{replica.process.pid}/statm").read_text().split())[0]) * resource.getpagesize()
    resource.prlimit(replica.process.pid, resource.RLIMIT_AS, (used + (300 << 20), used + (300 << 20)))
    large = {"inputs": [[1] * FEATURES] * 400_000}
    assert replica.request("POST", "/infer", large)[0] == 507
    assert replica.request("POST", "/infer", {"inputs": [ROW]})[0] == 200


def test_no_request_is_lost_when_it_is_ended(start: Start, trained: Path) -> None:
    """Clients learn that it isn't ready and go elsewhere; until then, and what runs then, is answered."""
    replica = serve(start, trained, "--linger-s", 10)
    until(lambda: ready(replica))
    port, outcomes = replica.port(), list[tuple[int, bool]]()

    def ask() -> None:
        told = False
        while not told:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("POST", "/infer", json.dumps({"inputs": [ROW] * 50}))
            answer = connection.getresponse()
            answer.read()
            told = answer.getheader("Connection") == "close"
            outcomes.append((answer.status, told))
            connection.close()
            time.sleep(0.02)

    slow = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    slow.putrequest("POST", "/infer")
    body = json.dumps({"inputs": [ROW]}).encode()
    slow.putheader("Content-Length", str(len(body)))
    slow.endheaders(body[:5])
    until(lambda: b"inference_in_flight 1" in replica.request("GET", "/metrics")[1])
    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    until(lambda: len(outcomes) > 10)
    replica.signal(signal.SIGTERM)
    for thread in threads:
        thread.join()
    assert not ready(replica)
    assert {status for status, _ in outcomes} == {200}
    until(lambda: not listens(port))
    slow.send(body[5:])  # a request that was under way when it stopped listening
    assert slow.getresponse().status == 200
    assert replica.process.wait(60) == 0


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionError:
        return False
    return True


def test_more_requests_than_it_can_hold_are_refused_at_once(start: Start, trained: Path) -> None:
    replica = serve(start, trained, "--most-in-flight", 2)
    until(lambda: ready(replica))
    held = []
    for _ in range(2):
        connection = http.client.HTTPConnection("127.0.0.1", replica.port(), timeout=30)
        connection.putrequest("POST", "/infer")
        connection.putheader("Content-Length", "100")
        connection.endheaders(b"{")  # the rest never comes
        held.append(connection)
    until(lambda: b"inference_in_flight 2" in replica.request("GET", "/metrics")[1])
    status, _, headers = replica.request("POST", "/infer", {"inputs": [ROW]})
    assert (status, headers["retry-after"]) == (503, "1")
    for connection in held:
        connection.close()
    until(lambda: replica.request("POST", "/infer", {"inputs": [ROW]})[0] == 200)


def test_an_answers_body_does_not_wait_for_the_clients_word_on_its_head() -> None:
    seen: list[int] = []

    class Seen(Handler):
        def do_GET(self) -> None:  # noqa: N802 - http.server names it
            seen.append(self.connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    with Server(("127.0.0.1", 0), Seen) as server:
        threading.Thread(target=server.handle_request).start()
        connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
        connection.request("GET", "/")
        until(lambda: seen)
        connection.close()
    assert seen[0]


class Watched(NumpyModel):
    """A model that says who asks it, and fails as a test wants."""

    def __init__(self) -> None:
        super().__init__(8)
        self.asked, self.free = 0, threading.Event()
        self.error: Exception | None = None
        self.free.set()

    def infer(self, rows: list[list[float]]) -> list[float]:
        self.asked += 1
        self.free.wait(LATEST_S)
        if self.error:
            raise self.error
        return super().infer(rows)


@pytest.fixture
def watched() -> Iterator[tuple[Watched, int]]:
    """A model and the port at which a replica serves it."""
    learner = Watched()
    replica = Replica(learner, 32)
    replica.step = 1
    with Server(("127.0.0.1", 0), type("Bound", (Handler,), {"replica": replica})) as server:
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        serving.start()
        yield learner, server.server_address[1]
        server.shutdown()
        serving.join()


def asked(port: int, path: str = "/infer") -> tuple[int, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", path, json.dumps({"inputs": [ROW]}))
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status, dict(answer.getheaders())


def in_flight(port: int) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    return next(int(line.split()[1]) for line in lines if line.startswith("inference_in_flight "))


@pytest.mark.parametrize("path", ["/infer", "/infer/stream"])
def test_a_client_that_left_costs_the_gpu_nothing(watched: tuple[Watched, int], path: str) -> None:
    learner, port = watched
    learner.free.clear()  # another request has the GPU
    other = threading.Thread(target=asked, args=(port,))
    other.start()
    until(lambda: learner.asked == 1)
    gone = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    gone.request("POST", path, json.dumps({"inputs": [ROW]}))
    until(lambda: in_flight(port) == 2)
    gone.close()
    learner.free.set()
    other.join()
    until(lambda: in_flight(port) == 0)
    assert learner.asked == 1


@pytest.mark.parametrize("path", ["/infer", "/infer/stream"])
@pytest.mark.parametrize(
    ("error", "code", "lost"),
    [
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), 500, False),
        (LostGpuError("CUDA error: an illegal memory access was encountered"), 500, True),
        (OutOfMemoryError("CUDA out of memory"), 507, False),
    ],
)
def test_only_what_takes_the_gpu_along_is_called_a_lost_gpu(
    watched: tuple[Watched, int], path: str, error: Exception, code: int, lost: bool
) -> None:
    learner, port = watched
    learner.error = error
    status, headers = asked(port, path)
    assert (status, "X-GPU-Lost" in headers) == (code, lost)
    learner.error = None
    status, headers = asked(port, path)  # this one killed nothing: another replica may be asked
    assert (status, "Retry-After" in headers, "X-GPU-Lost" in headers) == (503 if lost else 200, lost, False)
