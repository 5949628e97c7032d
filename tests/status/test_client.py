"""Whoever listens on the agent's port may answer a command: with anything, and for ever."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.cli import main
from agent.config.settings import Config
from agent.status.client import running
from tests.waiting import LATEST_S

STATE = {"status": "healthy", "gpus": {}, "faults": [], "blind": [], "waits": [], "sources": []}
ANSWERS = {
    "lists": b"[" * 1_000_000,
    "lists in the state": json.dumps(STATE).encode()[:-1] + b',"x":' + b"[" * 500 + b"]" * 500 + b"}",
    "no object": b"[1]",
    "a fault that is none": json.dumps({**STATE, "faults": [{"id": 3}]}).encode(),
    "words that are none": json.dumps({**STATE, "waits": [{}]}).encode(),
    "no GPUs": json.dumps({**STATE, "gpus": 8}).encode(),
    "NaN": json.dumps({**STATE, "look_s": float("nan")}).encode(),
}


@contextlib.contextmanager
def answering(answer: bytes, each_s: float = 0.0) -> Iterator[int]:
    """The port of a server that says this once, byte by byte where ``each_s`` says how slowly."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        head = b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer)

        def work() -> None:
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):
                connection.recv(4096)
                if not each_s:
                    connection.sendall(head + answer)
                for byte in answer if each_s else b"":
                    connection.sendall(bytes([byte]))
                    time.sleep(each_s)

        thread = threading.Thread(target=work)
        thread.start()
        yield server.getsockname()[1]
        thread.join(LATEST_S)


def at(port: int) -> Config:
    return Config.model_validate({"http": {"address": "127.0.0.1", "port": port}})


@pytest.mark.parametrize("what", ANSWERS)
def test_an_answer_that_is_no_state_is_no_agent(what: str) -> None:
    with answering(ANSWERS[what]) as port:
        assert running(at(port)) is None


def test_what_is_a_state_is_taken_as_it_is() -> None:
    with answering(json.dumps(STATE).encode()) as port:
        assert running(at(port)) == STATE


def test_an_answer_that_drips_is_waited_for_three_seconds_in_all() -> None:
    began = time.monotonic()
    with answering(b"HTTP/1.0 200 OK\r\n" + b"x" * 1000, each_s=0.05) as port:
        assert running(at(port)) is None
        assert time.monotonic() - began < 15, "50 s if each byte may take its time"


def test_explain_says_in_one_sentence_that_no_agent_answers(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with answering(ANSWERS["a fault that is none"]) as port:
        config = tmp_path / "config.yaml"
        config.write_text(f"http: {{address: 127.0.0.1, port: {port}}}")
        assert main(["explain", "--config", str(config)]) == 1
    assert capsys.readouterr().err.startswith("gpu-health-agent: no agent answers on port")
