"""Whoever may join asks at the door: a clear answer at once, however the agent and its GPUs hang."""

from __future__ import annotations

import argparse
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from agent.commands import check
from agent.sources.kubelet.pod_resources import messages
from agent.status.fitness import Answer, Door, State, answer, asked
from agent.status.nvhcd import MESSAGES, serve
from tests.waiting import until

FATAL = {"id": "xid-79@0000:1b:00.0", "severity": "fatal"}
HOT = {"id": "temperature@0000:1b:00.0", "severity": "degraded"}


def state(status: str = "healthy", *faults: dict[str, str], blind: tuple[str, ...] = (), age_s: float = 1) -> State:
    return {
        "status": status,
        "faults": faults,
        "blind": blind,
        "sources": [{"name": "nvml", "age_s": age_s}, {"name": "kmsg", "age_s": None}],
    }


@pytest.mark.parametrize(
    ("said", "age_s", "fit", "status", "why"),
    [
        (state(), 0, True, "healthy", ""),
        (state("degraded", HOT), 0, True, "degraded", "temperature@"),
        (state("unhealthy", FATAL, HOT), 0, False, "unhealthy", "xid-79@"),
        (state("unknown", blind=("nvml: not heard yet",)), 0, False, "unknown", "not heard yet"),
        ({**state(), "stage": "validating"}, 0, False, "unhealthy", "its GPUs are checked"),
        ({**state("degraded", HOT), "stage": "unhealthy"}, 0, False, "unhealthy", "failed their check; temperature@"),
        ({**state("unhealthy", FATAL), "stage": "unhealthy"}, 0, False, "unhealthy", "xid-79@"),
        ({**state(), "stage": "healthy"}, 0, True, "healthy", ""),
        (state(age_s=19), 2, False, "unknown", "the GPUs have said nothing for 21 s"),
        (state(), 6, False, "unknown", "does not answer"),
        (None, 0, False, "unknown", "does not answer"),
    ],
)
def test_only_a_node_that_was_lately_seen_to_be_fit_is(
    said: State | None, age_s: float, fit: bool, status: str, why: str
) -> None:
    found = answer(said, age_s)
    assert (found.fit, found.status) == (fit, status)
    assert why in "; ".join(found.why)


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Callable[[Callable[[], State | None]], Path]]:
    """Opens one before an agent."""
    opened: list[Door] = []

    def at(ask: Callable[[], State | None]) -> Path:
        path = tmp_path / "check.sock"
        made = Door(path, ask)
        opened.append(made)
        threading.Thread(target=made.run, daemon=True).start()
        return path

    yield at
    for one in opened:
        one.stop()


def test_a_hung_agent_keeps_nobody_waiting_at_the_door(door: Callable[..., Path]) -> None:
    """How soon the no comes `make bench` tells."""
    over, agent_asked = threading.Event(), []

    def hang() -> State | None:
        agent_asked.append(1)
        over.wait(60)
        return None

    path = door(hang)
    for _ in range(200):
        assert asked(path) == Answer(False, "unknown", ("the agent of this node does not answer",))
    assert (len(agent_asked), over.is_set()) == (1, False), "an answer waited until the agent's time was over"
    over.set()


def test_a_stranger_that_says_nothing_keeps_nobody_waiting(door: Callable[..., Path]) -> None:
    path = door(state)
    until(lambda: asked(path).fit)
    silent = [socket.socket(socket.AF_UNIX) for _ in range(32)]
    for one in silent:
        one.connect(str(path))
        one.send(b"GET /che")
    assert asked(path) == Answer(True, "healthy")
    for one in silent:
        one.close()


def test_strangers_that_drip_their_questions_keep_nobody_out(door: Callable[..., Path]) -> None:
    path, dripping = door(state), threading.Event()
    until(lambda: asked(path).fit)
    lines = [socket.socket(socket.AF_UNIX) for _ in range(64)]
    for one in lines:
        one.connect(str(path))
    over = time.monotonic() + 1.5  # a line that never pauses for a second
    while not dripping.wait(0.3) and time.monotonic() < over:
        for one in lines:
            one.send(b"G")
    assert asked(path) == Answer(True, "healthy")
    for one in lines:
        one.close()


@pytest.mark.parametrize(
    "sources",
    [
        [],
        [{"name": "nvml"}],
        [{"name": "nvml", "age_s": None}],
        [{"name": "nvml", "age_s": "old"}],
        [{"name": "nvml", "age_s": -30}],
        [{"name": "nvml", "age_s": float("nan")}],
    ],
)
def test_an_agent_that_tells_no_age_of_its_gpus_is_a_no_and_never_an_error(sources: list[dict[str, Any]]) -> None:
    """NVIDIA's launcher takes an error for a yes."""
    found = answer({**state(), "sources": sources}, 0)
    assert (found.fit, found.status) == (False, "unknown")


@pytest.mark.parametrize("said", [{"stage": ["x"]}, {"faults": [{}]}, {"blind": 1}])
def test_an_agents_answer_that_makes_no_sense_is_a_no_and_never_an_error(said: dict[str, Any]) -> None:
    assert not answer({**state(), **said}, 0).fit


def test_a_no_ends_no_check_well_whatever_stands_beside_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    body = json.dumps({"fit": False, "status": "healthy", "why": []}).encode()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen()

    def stranger() -> None:
        line, _ = listener.accept()
        with line:
            line.recv(4096)
            line.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + body)

    threading.Thread(target=stranger, daemon=True).start()
    assert check.run(argparse.Namespace(socket=tmp_path / "s", json=False)) == 3
    assert capsys.readouterr().out == "healthy\n"
    listener.close()


@pytest.mark.parametrize("there", ["file", "folder", "link to nowhere"])
def test_what_is_no_socket_is_a_no(tmp_path: Path, there: str) -> None:
    path = tmp_path / "s"
    match there:
        case "file":
            path.write_text('{"fit": true, "status": "healthy", "why": []}')
        case "folder":
            path.mkdir()
        case _:
            path.symlink_to("nowhere")
    assert asked(path).status == "unknown"


def test_nobody_at_the_door_is_a_no(tmp_path: Path) -> None:
    nobody = tmp_path / "nobody"
    assert asked(nobody) == Answer(False, "unknown", (f"{nobody} does not answer (No such file or directory)",))


@contextmanager
def launchers(path: Path, found: Answer) -> Iterator[tuple[Any, Any]]:
    """The call as NVIDIA's launcher makes it, and the kind of its request."""
    server = serve(path, lambda: found)
    known: dict[str, Any] = messages("nvhcd", MESSAGES)
    with grpc.insecure_channel(f"unix://{path}") as channel:
        yield (
            channel.unary_unary(
                "/nvhcd.HealthCheckService/RunHealthCheck",
                request_serializer=known["HealthCheckRequest"].SerializeToString,
                response_deserializer=known["HealthCheckResponse"].FromString,
            ),
            known["HealthCheckRequest"],
        )
    server.stop(None)


@pytest.mark.parametrize(
    "found", [Answer(True, "degraded", ("hot",)), Answer(False, "unhealthy", ("xid-79@x: fatal",))]
)
def test_nvidias_launcher_is_told_by_its_own_protocol(tmp_path: Path, found: Answer) -> None:
    with launchers(tmp_path / "nvhcd.sock", found) as (call, request):
        said = call(request(args=["--no-slurm"]), timeout=5)
    failed = json.loads(said.output)["fail_count"]
    assert (said.success, said.exit_code, failed) == ((True, 0, 0) if found.fit else (False, 1, 2))


def test_of_a_thousand_launchers_at_once_none_is_refused_an_answer(tmp_path: Path) -> None:
    """A launcher takes a refused call for a yes."""
    with launchers(tmp_path / "nvhcd.sock", Answer(False, "unhealthy")) as (call, request):
        calls = [call.future(request(), timeout=20) for _ in range(1000)]
        assert {one.result().success for one in calls} == {False}
