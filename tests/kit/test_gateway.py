"""What passes through the gateway, and how it comes and goes itself."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from attempt import passed

from tests.kit.conftest import KIT, Front, Program, Start, breakers, infer, metric, until
from tests.kit.stub import Stub
from tests.waiting import LATEST_S

CHAT = "/v1/chat/completions"


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


def test_it_goes_without_uvloop_too(start: Start, stubs: list[Stub], tmp_path: Path) -> None:
    (tmp_path / "uvloop.py").write_text("raise ImportError\n")
    replicas = ("--replicas", f"127.0.0.1:{stubs[0].port}")
    gateway = start("gateway.py", *replicas, "--port", 0, environment={"PYTHONPATH": str(tmp_path)})
    until(lambda: gateway.request("GET", "/readyz")[0] == 200)
    assert infer(gateway) == 200


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


def test_an_answer_that_breaks_off_is_not_passed_as_whole(front: Front, stubs: list[Stub]) -> None:
    gateway = front()
    for stub in stubs:
        stub.mode, stub.served = "cut stream", 0
    with pytest.raises(http.client.IncompleteRead):
        infer(gateway)
    assert sum(stub.served for stub in stubs) == 1  # the client has its beginning: no repeating
    assert metric(gateway, "gateway_requests_total", 'code="502"') == 1


def test_a_short_answer_that_breaks_off_is_repeated_before_any_of_it_goes_out(front: Front, stubs: list[Stub]) -> None:
    gateway = front()
    stubs[0].mode = "cut"
    for _ in range(20):
        assert infer(gateway) == 200


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
    status, _, headers = gateway.request("POST", "/infer", b"{}")
    assert (status, headers["connection"]) == (200, "close")  # the client's next request goes to another gateway

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
    assert gateway.process.wait(LATEST_S) == 0


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
        gateway.wait(LATEST_S)


def test_headers_of_one_connection_stay_on_it() -> None:
    headers = [(b"Connection", b"close, X-Secret"), (b"X-Secret", b"1"), (b"TE", b"x"), (b"X-Own", b"2")]
    assert list(passed(headers).items()) == [("X-Own", "2")]


def test_nothing_waits_for_a_clients_word_on_a_kept_connection(front: Front) -> None:
    """A stall of Nagle's is 40 ms each; twenty of them would be seen in any noise."""
    connection = http.client.HTTPConnection("127.0.0.1", front().port(), timeout=30)

    def ask() -> float:
        began = time.monotonic()
        connection.request("POST", "/infer", b"{}")
        connection.getresponse().read()
        return time.monotonic() - began

    fastest = min(ask() for _ in range(20))
    connection.close()
    assert fastest < 0.04


def test_an_answer_of_an_error_passes_with_its_body_and_headers(front: Front, stubs: list[Stub]) -> None:
    gateway = front()
    for stub in stubs:
        stub.mode = "502"
    for path in ("/infer", "/order"):
        status, body, headers = gateway.request("POST", path, b"{}")
        assert (status, headers["x-replica"]) == (502, str(json.loads(body)["port"]))


def test_a_head_has_the_length_of_the_answer_and_nothing_else(front: Front) -> None:
    status, body, headers = front().request("HEAD", "/infer")
    assert (status, body) == (200, b"")
    assert int(headers["content-length"]) > 0


def test_who_asked_is_told_once_however_many_proxies_there_were(front: Front, stubs: list[Stub]) -> None:
    front().request("POST", "/infer", b"{}", {"X-Forwarded-For": "192.0.2.1, 198.51.100.2"})
    (told,) = [head for stub in stubs for _, head in stub.heads]
    assert [value for name, value in told if name.lower() == "x-forwarded-for"] == [
        "192.0.2.1, 198.51.100.2, 127.0.0.1"
    ]


def test_a_stream_may_last_as_long_as_it_says_something(front: Front, stubs: list[Stub]) -> None:
    """Longer than an answer may take to begin."""
    gateway = front("--total-s", 0.3, "--read-s", 10)
    for stub in stubs:
        stub.mode = "stream"
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port(), timeout=30)
    connection.request("POST", "/infer/stream", b"{}")
    answer = connection.getresponse()
    time.sleep(0.6)
    for stub in stubs:
        stub.release.set()
    assert answer.read() == b"firstlast"
    connection.close()


def test_a_stream_that_says_nothing_is_cut_and_no_failure_of_the_replica(front: Front, stubs: list[Stub]) -> None:
    gateway = front("--read-s", 0.3, "--breaker-failures", 1)
    for stub in stubs:
        stub.mode = "stream"
    with pytest.raises(http.client.IncompleteRead):
        infer(gateway)
    assert set(breakers(gateway).values()) == {"closed"}
    assert metric(gateway, "gateway_attempts_total", 'outcome="stream"') == 1
    assert metric(gateway, "gateway_requests_total", 'code="504"') == 1


@pytest.fixture
def for_vllm(front: Front) -> Program:
    """The gateway as the component starts it."""
    component = yaml.safe_load((KIT / "vllm" / "kustomization.yaml").read_text())
    (operation,) = yaml.safe_load(component["patches"][0]["patch"])
    program, file, replicas, *settings = operation["value"]
    assert (program, file, replicas) == ("python3", "/kit/gateway.py", "--replicas=inference-replicas:8080")
    return front(*settings)


@pytest.mark.parametrize(("mode", "path"), [("429", "/v1/models"), ("503", "/v1/responses"), ("kill", CHAT)])
def test_before_vllm_what_is_refused_or_may_be_repeated_is_answered_elsewhere(
    for_vllm: Program, stubs: list[Stub], mode: str, path: str
) -> None:
    stubs[0].mode = mode
    while not stubs[0].served:
        assert infer(for_vllm, path) == 200


def test_before_vllm_what_it_keeps_is_sent_once(for_vllm: Program, stubs: list[Stub]) -> None:
    for stub in stubs:
        stub.mode = "kill"
    for path in ("/v1/responses", "/v1/files"):
        assert infer(for_vllm, path) == 502
    assert sum(stub.served for stub in stubs) == 2


def test_before_vllm_tokens_arrive_as_they_are_made(for_vllm: Program, stubs: list[Stub]) -> None:
    for stub in stubs:
        stub.mode = "events"
    connection = http.client.HTTPConnection("127.0.0.1", for_vllm.port(), timeout=30)
    connection.request("POST", CHAT, b'{"stream": true}', {"Authorization": "Bearer key"})
    answer = connection.getresponse()
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.read1() == b'data: {"choices": []}\n\n'
    for stub in stubs:
        stub.release.set()
    assert answer.read() == b"data: [DONE]\n\n"
    connection.close()
    (head,) = [dict(head) for stub in stubs for path, head in stub.heads if path == CHAT]
    assert head["Authorization"] == "Bearer key"
