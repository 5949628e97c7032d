"""The daemon as a whole over simulated GPUs: what a hung driver does to it, and what it doesn't."""

from __future__ import annotations

import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

from agent.config.settings import Config
from agent.config.source_index import Known
from agent.model.errors import UnreachableError
from agent.model.fault import Status, Unseen
from agent.model.observation import Observation, Signal
from agent.model.world import World
from agent.runtime.actor import Actor
from agent.runtime.daemon import Daemon, serve
from agent.simulation.simulated import inject
from agent.sources.process.command_lines import supervisor
from agent.sources.process.source import SourceStatus
from agent.status.server import Server
from tests.observe import GPU, alive, reading, xid
from tests.waiting import LATEST_S, until

POLL_S = 1.0


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[Daemon, Server, Path]]:
    config = Config.model_validate(
        {"poll_s": POLL_S, "http": {"address": "127.0.0.1", "port": 0}, "sources": {"simulated": {"scenario": "idle"}}}
    )
    daemon = Daemon(config, "n", None, lambda *_, **__: None, supervisor(config, tmp_path))
    server, stop = serve(config, daemon), threading.Event()
    thread = threading.Thread(target=daemon.run, args=(stop,))
    thread.start()
    yield daemon, server, tmp_path
    stop.set()
    thread.join(LATEST_S)
    server.shutdown()


def status(daemon: Daemon) -> Status | None:
    return daemon.snapshot.verdict.status if daemon.snapshot else None


def test_a_hung_driver_is_named_and_hides_nothing_and_withdraws_nothing(running: tuple[Daemon, Server, Path]) -> None:
    daemon, server, folder = running
    until(lambda: status(daemon) is Status.HEALTHY)
    inject(folder, {"gpu": 3, "hang": "nvmlDeviceGetEccMode"})
    until(
        lambda: bool(
            daemon.snapshot and any("ecc_mode of GPU 0000:61:00.0" in w for w in daemon.snapshot.verdict.blind_lines)
        )
    )
    assert status(daemon) is Status.UNKNOWN
    began = time.monotonic()
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics") as answer:
        text = answer.read().decode()
    assert time.monotonic() - began < 1.0
    assert 'gpu_health_blind{node="n"} 1.0' in text
    with (folder / "kmsg").open("a") as log:
        log.write("3,5000,1,-;NVRM: Xid (PCI:0000:43:00): 79, GPU has fallen off the bus.\n")
    until(lambda: status(daemon) is Status.UNHEALTHY)
    assert daemon.snapshot
    assert [source.starts for source in daemon.snapshot.sources] == [1, 1]
    assert [fault.finding.rule for fault in daemon.snapshot.verdict.faults] == ["xid-79"]
    inject(folder, {"clear": True})


def test_an_agent_that_never_read_its_node_is_alive_and_not_ready(tmp_path: Path) -> None:
    config = Config.model_validate({"poll_s": POLL_S, "sources": {"simulated": {"scenario": "idle"}}})

    def nobody() -> NoReturn:
        raise UnreachableError("no API server")

    actor = Actor(config, nobody, False, lambda *_, **__: None)
    daemon = Daemon(config, "n", actor, lambda *_, **__: None, supervisor(config, tmp_path))
    stop = threading.Event()
    thread = threading.Thread(target=daemon.run, args=(stop,))
    thread.start()
    try:
        until(lambda: bool(daemon.snapshot and daemon.snapshot.waits))
        assert (daemon.alive(), daemon.ready()) == (True, False)
    finally:
        stop.set()
        thread.join(LATEST_S)


def test_an_act_loop_that_hangs_is_told_and_ends_the_agent_for_the_kubelet(tmp_path: Path) -> None:
    config = Config.model_validate(
        {"poll_s": POLL_S, "http": {"address": "127.0.0.1", "port": 0}, "sources": {"simulated": {"scenario": "idle"}}}
    )
    goes_on = threading.Event()

    def never() -> NoReturn:
        goes_on.wait(LATEST_S)
        raise UnreachableError("no API server")

    actor = Actor(config, never, False, lambda *_, **__: None)
    daemon = Daemon(config, "n", actor, lambda *_, **__: None, supervisor(config, tmp_path), act_stalled_s=1.5)
    server, stop = serve(config, daemon), threading.Event()
    thread = threading.Thread(target=daemon.run, args=(stop,))
    assert daemon.alive()
    thread.start()
    try:
        until(lambda: not daemon.alive())
        with pytest.raises(urllib.error.HTTPError, match="503") as failed:
            urllib.request.urlopen(f"http://127.0.0.1:{server.port}/healthz")
        assert "the act loop stands still" in failed.value.read().decode()
        failed.value.close()
        until(lambda: bool(daemon.snapshot and (daemon.snapshot.act_age_s or 0) > 1.5))
        goes_on.set()
        until(daemon.alive)
    finally:
        goes_on.set()
        stop.set()
        thread.join(LATEST_S)
        server.shutdown()


class Script:
    """Sources that say what is written, round by round, and then end the agent."""

    names: tuple[str, ...] = ("nvml",)
    statuses: tuple[SourceStatus, ...] = (SourceStatus("nvml", True, 1, 1, 0, 1.0, ""),)

    def __init__(self, stop: threading.Event, *rounds: list[Observation]) -> None:
        self._stop, self._rounds = stop, list(rounds)

    def want(self, names: Set[str], known: Known) -> None:
        pass

    def ended(self, names: Iterable[str]) -> bool:
        return False

    def turn(self, wait_s: float) -> list[Observation]:
        if len(self._rounds) == 1:
            self._stop.set()
        return self._rounds.pop(0)

    def who_holds(self) -> Any:
        raise AssertionError("nobody asks")

    def who_runs(self) -> Any:
        raise AssertionError("nobody asks")

    def diagnose(self, level: int, uuids: Sequence[str], progress: object) -> dict[str, Any]:
        raise AssertionError("nobody asks")

    def close(self) -> None:
        pass


def test_an_error_of_a_rule_keeps_the_last_verdict_and_says_so_once() -> None:
    bad: Any = None  # what no source can say: its values are none
    now = time.monotonic()
    absurd = Observation(0, "nvml", Signal.ALIVE, values=bad, arrived=now)
    logged: list[str] = []
    stop = threading.Event()
    script = Script(stop, [replace(one, arrived=now) for one in (alive(), reading())], [absurd], [absurd])
    daemon = Daemon(Config(), "n", None, lambda event, **_: logged.append(event), script)
    daemon.run(stop)
    assert daemon.snapshot
    verdict = daemon.snapshot.verdict
    assert verdict.status is Status.UNKNOWN
    assert verdict.blind["judge"].kind is Unseen.MISJUDGED
    assert verdict.blind_lines == ("judge: unexpected AttributeError; please report it",)
    assert logged.count("judge: unexpected AttributeError; please report it") == 1
    assert list(daemon.snapshot.readings) == [GPU]


def test_a_persons_word_is_logged_and_one_that_names_nothing_too() -> None:
    now, stop, logged = time.monotonic(), threading.Event(), []
    seen = [replace(one, arrived=now) for one in (alive(), reading())]
    words = frozenset({f"xid-79@{GPU}", f"xid-97@{GPU}"})

    class Worded(Script):
        """The Node bears the words from the last round on."""

        def turn(self, wait_s: float) -> list[Observation]:
            if len(self._rounds) == 1:
                daemon._exchange.acted = replace(daemon._exchange.acted, world=World("n", "uid", dismissed=words))
            return super().turn(wait_s)

    script = Worded(stop, [*seen, replace(xid(79), arrived=now)], seen)
    daemon = Daemon(Config(), "n", None, lambda event, **more: logged.append((event, more.get("fault"))), script)
    daemon.run(stop)
    assert ("a person dismissed a fault", f"xid-79@{GPU}") in logged
    assert ("a person dismissed a fault that does not stand", f"xid-97@{GPU}") in logged


def test_a_proved_cure_is_looked_at_at_once_and_not_when_a_waiting_node_looks_again() -> None:
    now, stop, rung = time.monotonic(), threading.Event(), list[bool]()

    class Bell(Script):
        def turn(self, wait_s: float) -> list[Observation]:
            rung.append(daemon._exchange.news.is_set())
            daemon._exchange.news.clear()
            return [replace(one, arrived=now + len(rung) / 100) for one in super().turn(wait_s)]

    polls = [[alive(), reading(energy_j=energy_j)] for energy_j in (100.0, 101.0, 1.0, 2.0)]  # a reset after the second
    script = Bell(stop, polls[0], [xid(95)], *polls[1:], [])
    daemon = Daemon(Config(), "n", None, lambda *_, **__: None, script)
    daemon.run(stop)
    assert daemon.snapshot
    assert [fault.proved for fault in daemon.snapshot.verdict.faults] == [True]
    assert rung == [False, True, True, False, False, True]
