"""Real replicas behind the gateway, of which one is killed or stopped while a client keeps its connection."""

from __future__ import annotations

import http.client
import json
import time
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP, Signals

import pytest
from checkpoint import Folder
from model import FEATURES, model

from tests.kit.conftest import Program, Start, breakers, until

BODY = json.dumps({"inputs": [[0.5] * FEATURES]})


@pytest.fixture
def replicas(start: Start, tmp_path: Path) -> list[Program]:
    folder = Folder(tmp_path / "run")
    folder.claim()
    folder.save(1, model(256).dump)
    started = [start("inference.py", "--folder", folder.path, "--port", 0) for _ in range(3)]
    until(lambda: all(one.request("GET", "/readyz")[0] == 200 for one in started))
    return started


@pytest.mark.parametrize(
    ("number", "pause_s", "requests"), [(SIGKILL, 1.0, 6), (SIGKILL, 0.02, 60), (SIGSTOP, 0.02, 60)]
)
def test_a_replica_that_is_killed_or_stopped_fails_no_request(
    start: Start, replicas: list[Program], number: Signals, pause_s: float, requests: int
) -> None:
    """Busy or quiet, on one connection that is kept."""
    names = ",".join(f"127.0.0.1:{one.port()}" for one in replicas)
    gateway = start("gateway.py", "--replicas", names, "--port", 0, "--read-s", 1)
    until(lambda: gateway.request("GET", "/readyz")[0] == 200)
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port(), timeout=30)

    def ask() -> int:
        connection.request("POST", "/infer", BODY)
        answer = connection.getresponse()
        answer.read()
        return answer.status

    assert {ask() for _ in range(20)} == {200}  # the gateway keeps connections to all three
    kept = connection.sock
    replicas[0].signal(number)
    codes = []
    for _ in range(requests):
        codes.append(ask())
        time.sleep(pause_s)
    assert set(codes) == {200}
    assert connection.sock is kept
    if number == SIGSTOP:
        assert breakers(gateway)[replicas[0].port()] == "open"
        replicas[0].signal(SIGCONT)
    connection.close()
