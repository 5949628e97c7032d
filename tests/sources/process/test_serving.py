"""Two containers: the sources in one, the agent in the other, a socket between, and neither trusts what it carries."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.config.settings import Config
from agent.config.source_index import Known
from agent.model.errors import UnaskedError, UndiagnosedError
from agent.model.fault import Status
from agent.model.observation import Failure, Observation, Signal
from agent.runtime.daemon import Daemon
from agent.simulation.simulated import inject
from agent.sources.dcgm.diag_process import LONGEST_BYTES
from agent.sources.process.remote import Remote
from agent.sources.process.renewal import Renewal
from tests.waiting import LATEST_S, until

NAMES = ("nvml", "kmsg")
ALL = frozenset(NAMES)


@pytest.fixture
def other(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The container of the sources, on simulated GPUs."""
    config = folder / "config.yaml"
    config.write_text(json.dumps({"poll_s": 0.5, "sources": {"pods": {"socket": str(folder / "kubelet.sock")}}}))
    command = [
        "sources",
        "--config",
        str(config),
        "--socket",
        str(folder / "s"),
        "--simulate",
        "idle",
        "--simulation-dir",
        str(folder),
        "--log-format",
        "console",
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "agent", *command], stderr=log)
    until(lambda: (folder / "s").is_socket())
    yield process
    process.terminate()
    process.wait(LATEST_S)


def gather(remote: Remote, true: Callable[[list[Observation]], object]) -> list[Observation]:
    """What came until it was true."""
    seen: list[Observation] = []
    due = time.monotonic() + 60
    while not true(seen):
        assert time.monotonic() < due, (seen[-3:], remote.statuses)
        seen += remote.turn(0.2)
    return seen


def xids(seen: list[Observation]) -> list[object]:
    return [o.value for o in seen if o.signal is Signal.XID and o.source == "kmsg" and not o.past]


def write(folder: Path, seq: int, code: int) -> None:
    with (folder / "kmsg").open("a") as log:
        log.write(f"3,{seq},1,-;NVRM: Xid (PCI:0000:43:00): {code}, pid=1, name=x\n")


def test_the_agent_judges_over_the_socket_what_it_would_judge_alone(
    other: subprocess.Popen[bytes], folder: Path
) -> None:
    daemon = Daemon(Config(poll_s=0.5), "n", None, lambda *_, **__: None, Remote(folder / "s", NAMES))
    stop = threading.Event()
    thread = threading.Thread(target=daemon.run, args=(stop,))
    thread.start()
    try:
        until(lambda: daemon.snapshot and daemon.snapshot.verdict.status is Status.HEALTHY)
        assert "[info] started socket=" in (folder / "log").read_text()
        inject(folder, {"gpu": 3, "xid": 79})
        until(lambda: daemon.snapshot and daemon.snapshot.verdict.status is Status.UNHEALTHY)
        assert daemon.snapshot
        assert [(s.name, s.up, s.starts) for s in daemon.snapshot.sources] == [("nvml", True, 1), ("kmsg", True, 1)]
        other.terminate()
        until(lambda: daemon.snapshot and not any(s.up for s in daemon.snapshot.sources))
        assert daemon.snapshot.verdict.status is Status.UNHEALTHY, "what it saw stands while it is blind"
    finally:
        stop.set()
        thread.join(LATEST_S)


def test_a_container_of_the_sources_that_never_starts_is_named_and_the_node_is_never_healthy(folder: Path) -> None:
    config, stop = Config.model_validate({"policy": {"silent_s": 0.3}}), threading.Event()
    daemon = Daemon(config, "n", None, lambda *_, **__: None, Remote(folder / "s", NAMES, away_s=0))
    seen: list[Status] = []
    daemon.judged = lambda verdict: seen.append(verdict.status)
    thread = threading.Thread(target=daemon.run, args=(stop,))
    thread.start()
    try:
        until(lambda: daemon.snapshot and daemon.snapshot.verdict.faults)
        assert daemon.snapshot
        assert sorted(f.finding.rule for f in daemon.snapshot.verdict.faults) == ["kmsg-silent", "nvml-silent"]
        assert all("its container is not reached over" in one for one in daemon.snapshot.verdict.blind_lines)
        assert all("its container is not reached" in f.finding.message for f in daemon.snapshot.verdict.faults)
        assert Status.HEALTHY not in seen
    finally:
        stop.set()
        thread.join(LATEST_S)


def test_released_is_only_what_has_no_process_any_more(other: subprocess.Popen[bytes], folder: Path) -> None:
    remote = Remote(folder / "s", NAMES)
    remote.want(ALL, Known())
    gather(remote, lambda _: all(s.pid for s in remote.statuses))
    pid = next(s.pid for s in remote.statuses if s.name == "nvml")
    assert pid
    remote.want(frozenset({"kmsg"}), Known())
    assert not remote.ended(["nvml"]), "nobody has said so yet"
    gather(remote, lambda _: remote.ended(["nvml"]))
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    remote.want(ALL, Known())
    assert not remote.ended(["nvml"])
    gather(remote, lambda seen: any(o.source == "nvml" for o in seen))
    remote.close()
    assert not remote.ended(["nvml"]) or not remote.turn(0), "without a connection nobody knows"


def test_the_next_agent_goes_on_at_its_position_and_hears_nothing_twice(
    other: subprocess.Popen[bytes], folder: Path
) -> None:
    first = Remote(folder / "s", NAMES)
    first.want(ALL, Known())
    gather(first, lambda seen: any(o.boot_id for o in seen if o.source == "kmsg"))
    write(folder, 10, 13)
    known = Known()
    for seen in gather(first, lambda seen: xids(seen) == [13]):
        known = known.after(seen)
    assert known.seq == 10
    first.close()
    write(folder, 11, 31)
    second = Remote(folder / "s", NAMES)
    second.want(ALL, known)
    assert xids(gather(second, lambda seen: 31 in xids(seen))) == [31]
    second.close()


def test_a_kernel_log_source_that_dies_goes_on_where_it_was(other: subprocess.Popen[bytes], folder: Path) -> None:
    remote = Remote(folder / "s", NAMES)
    remote.want(ALL, Known())
    gather(remote, lambda seen: any(o.boot_id for o in seen if o.source == "kmsg"))
    write(folder, 10, 13)
    gather(remote, lambda seen: xids(seen) == [13])
    gather(remote, lambda _: any(s.name == "kmsg" and s.pid for s in remote.statuses))
    pid = next(s.pid for s in remote.statuses if s.name == "kmsg")
    assert pid
    os.kill(pid, signal.SIGKILL)
    write(folder, 11, 31)
    assert xids(gather(remote, lambda seen: 31 in xids(seen))) == [31]
    remote.close()


def test_questions_are_answered_or_said_why_not(other: subprocess.Popen[bytes], folder: Path) -> None:
    """On simulated GPUs there is no kubelet and no engine to ask: an answer all the same."""
    remote, nobody = Remote(folder / "s", NAMES), Remote(folder / "nobody", NAMES)
    with pytest.raises(UnaskedError, match=r"kubelet.sock is not a socket"):
        remote.who_holds()
    with pytest.raises(UnaskedError, match="does not answer"):
        nobody.who_holds()
    with pytest.raises(UndiagnosedError, match="the GPUs are let go of"):
        remote.diagnose(1, ["GPU-a"], lambda _: None)
    remote.want(ALL, Known())
    gather(remote, lambda seen: {o.source for o in seen} == ALL)
    with pytest.raises(UndiagnosedError, match=r"no DCGM engine answers at 127\.0\.0\.1:5555|DCGM"):
        remote.diagnose(1, ["GPU-a"], lambda _: None)
    with pytest.raises(UndiagnosedError, match="gives no result"):
        nobody.diagnose(1, ["GPU-a"], lambda _: None)
    remote.close()


def test_a_request_that_makes_no_sense_costs_its_own_connection_only(
    other: subprocess.Popen[bytes], folder: Path
) -> None:
    remote = Remote(folder / "s", NAMES)
    remote.want(ALL, Known())
    gather(remote, lambda seen: {o.source for o in seen} == ALL)
    hostile = (
        b'{"do": "diagnose"}\n',
        b'{"do": "diagnose", "level": 1, "gpus": ["--bindings=/evil"]}\n',
        b'{"do": "diagnose", "level": 1, "gpus": ["GPU-a"' + b', "GPU-a"' * 300 + b"]}\n",
    )
    plain = (b"nonsense\n", b'{"do": "run", "argv": ["sh"]}\n', b'{"do": "resume"}\n', b"[]\n", b"x" * 9000)
    for line in (*plain, *hostile):
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.settimeout(10)
            stranger.connect(str(folder / "s"))
            stranger.sendall(line)
            with contextlib.suppress(ConnectionResetError):  # closed with unread bytes
                assert stranger.recv(100) == b"", line
    gather(remote, lambda seen: any(o.source == "nvml" for o in seen))
    assert other.poll() is None
    remote.close()


def test_without_the_other_container_each_source_is_blind_and_says_why(folder: Path) -> None:
    remote = Remote(folder / "s", NAMES)
    remote.want(ALL, Known())
    assert remote.turn(0.01) == []
    assert [(s.running, "container is not reached" in s.trouble) for s in remote.statuses] == [(False, True)] * 2
    assert not remote.ended(NAMES)


class Liar:
    """The other container, taken over: it says whatever it likes."""

    def __init__(self, path: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(1)

    def accept(self) -> socket.socket:
        return self._listener.accept()[0]

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def liar(folder: Path) -> Iterator[Liar]:
    made = Liar(folder / "s")
    yield made
    made.close()


GOOD = b'{"at":"2026-01-01T00:00:00Z","source":"nvml","signal":"alive"}\n'


def test_rubbish_is_counted_and_a_line_without_an_end_is_hung_up_on(folder: Path, liar: Liar) -> None:
    remote = Remote(folder / "s", NAMES)
    remote.turn(0)
    with liar.accept() as connection:
        bad = [b"[]\n", b'{"status": 3}\n', b'{"status": {"nvml": 3}, "heard": 1}\n', GOOD.replace(b"nvml", b"evil")]
        connection.sendall(b"".join(bad) + GOOD)
        seen = gather(remote, bool)
        assert [o.source for o in seen] == ["nvml"]
        assert [s.garbage for s in remote.statuses] == [4, 4]
        connection.sendall(b"x" * 100_000)
        gather(remote, lambda _: any("without an end" in s.trouble for s in remote.statuses))
    remote.close()


def diagnosed(folder: Path, liar: Liar, answer: bytes) -> tuple[dict[str, object], list[float]]:
    told: list[float] = []

    def answering() -> None:
        with liar.accept() as connection, contextlib.suppress(OSError):
            connection.recv(4096)
            connection.sendall(answer)

    thread = threading.Thread(target=answering)
    thread.start()
    try:
        return Remote(folder / "s", NAMES).diagnose(1, ["GPU-a"], told.append), told
    finally:
        thread.join(LATEST_S)


def test_a_diagnosis_tells_its_progress_and_then_its_result(folder: Path, liar: Liar) -> None:
    result = {"passed": False, "results": {}, "errors": []}
    lines = b'{"elapsed_s": 1.0}\n{"elapsed_s": 2.5}\n' + json.dumps(result).encode() + b"\n"
    assert diagnosed(folder, liar, lines) == (result, [1.0, 2.5])


@pytest.mark.parametrize("answer", [b"", b"[]\n", b'{"elapsed_s": "x"}\n', b'{"passed": 1}\n', b"x" * LONGEST_BYTES])
def test_an_answer_that_is_no_result_proves_nothing(folder: Path, liar: Liar, answer: bytes) -> None:
    with pytest.raises(UndiagnosedError, match="no answer that makes sense"):
        diagnosed(folder, liar, answer)


def test_a_flood_is_taken_in_bounded_bites(folder: Path, liar: Liar) -> None:
    remote = Remote(folder / "s", NAMES)
    remote.turn(0)
    with liar.accept() as connection:
        connection.setblocking(False)
        sent, took, end = 0, 0, time.monotonic() + 0.5
        while time.monotonic() < end:
            try:
                sent += connection.send(GOOD * 1000)
            except BlockingIOError:
                took += len(GOOD) * len(remote.turn(0.0))
        assert took <= 2 * 4 * 1024 * 1024, "two seconds' worth at the most can have begun"
        assert sent - took < 4 * 1024 * 1024, "the rest waits with the sender"
    remote.close()


def test_a_container_without_the_driver_ends_to_be_made_anew_each_time_later(folder: Path) -> None:
    count = folder / "renewals"
    blind = Observation(0, "nvml", Signal.FAILED, value=Failure.NO_LIBRARY)
    well = Observation(0, "nvml", Signal.ALIVE)
    for times, wait_s in ((0, 0.2), (1, 0.4), (2, 0.8)):
        renewal, began = Renewal(count, first_s=0.2), time.monotonic()
        while not renewal.due([blind]):
            time.sleep(0.01)
        assert time.monotonic() - began >= wait_s
        assert count.read_text() == str(times + 1)
    renewal = Renewal(count, first_s=0.2)
    assert not renewal.due([well])
    assert not count.exists()
    assert not renewal.due([Observation(0, "kmsg", Signal.FAILED, value=Failure.NO_PERMISSION)])
    time.sleep(0.3)
    assert not renewal.due([]), "the kernel log's trouble is no reason"
