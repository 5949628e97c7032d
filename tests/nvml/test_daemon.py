"""The whole agent over a library in C: found by dlopen, in the source's own process."""

from __future__ import annotations

import signal as signals
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.config.settings import Config
from agent.model.fault import Status
from agent.model.observation import Observation, Signal
from agent.runtime.absent_values import NOT_SUPPORTED
from agent.runtime.daemon import Daemon
from agent.sources.process.command_lines import supervisor
from agent.status.metrics import registry
from agent.status.snapshot import SourceView
from tests.nvml.boards import ADDRESSES, A, B, h100
from tests.nvml.standin import Driver, script
from tests.waiting import LATEST_S, until

BOARDS = {0: h100(A), 1: h100(B)}


class Agent:
    """A daemon that judges alone, and what it logged."""

    def __init__(self) -> None:
        self.told: list[tuple[str, dict[str, Any]]] = []
        others = ("kmsg", "pods", "dcgm")
        sources = {name: {"enabled": False} for name in others}
        config = Config.model_validate({"poll_s": 1.0, "sources": sources})
        self.daemon = Daemon(config, "n", None, self._tell, supervisor(config))

    def _tell(self, what: str, **facts: Any) -> None:
        self.told.append((what, facts))

    def metric(self, name: str, **labels: str) -> float | None:
        return registry(lambda: self.daemon.snapshot).get_sample_value(f"gpu_health_{name}", {"node": "n", **labels})

    def unreadable(self, gpu: int, signal: str, name: str = "unreadable") -> float | None:
        labels = {
            "pci_bus_id": ADDRESSES[gpu],
            "uuid": f"GPU-c0de0000-0000-4000-8000-{gpu:012d}",
            "gpu": str(gpu),
            "signal": signal,
        }
        return self.metric(name, **labels)

    @property
    def nvml(self) -> SourceView:
        assert self.daemon.snapshot
        return next(source for source in self.daemon.snapshot.sources if source.name == "nvml")

    def read_at(self, gpu: int) -> float:
        assert self.daemon.snapshot
        return self.daemon.snapshot.readings[ADDRESSES[gpu]].arrived

    @property
    def status(self) -> Status | None:
        return self.daemon.snapshot.verdict.status if self.daemon.snapshot else None


@pytest.fixture
def agent(driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Agent]:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(driver.library.parent))
    monkeypatch.setenv("NVML_STANDIN", str(driver.file))
    driver.answers(script(BOARDS))
    made, stop = Agent(), threading.Event()
    thread = threading.Thread(target=made.daemon.run, args=(stop,))
    thread.start()
    yield made
    stop.set()
    thread.join(LATEST_S)


def polls(agent: Agent, more: int) -> None:
    """Wait for so many more whole polls."""
    heartbeats = list[Observation]()
    agent.daemon.listener = lambda seen: heartbeats.append(seen) if seen.signal is Signal.ALIVE else None
    until(lambda: len(heartbeats) >= more)


def test_what_is_unsupported_is_logged_once_and_what_is_unreadable_is_a_metric(agent: Agent, driver: Driver) -> None:
    driver.answers(script(BOARDS, "answer nvmlDeviceGetMigMode 1 3", "answer nvmlDeviceGetEccMode 1 999"))
    until(lambda: agent.unreadable(1, "ecc_mode"))
    polls(agent, 2)
    assert agent.status is Status.HEALTHY
    assert agent.unreadable(0, "ecc_mode") is None
    assert (agent.unreadable(1, "ecc_mode", "failed_reads_total") or 0) >= 2
    assert agent.unreadable(0, "ecc_mode", "failed_reads_total") is None
    told = [facts for what, facts in agent.told if what == NOT_SUPPORTED]
    both, second = list(ADDRESSES), [ADDRESSES[1]]
    degrees = {f"temperature_{limit}_c" for limit in ("shutdown", "slowdown", "mem_max", "gpu_max")}
    assert sorted((facts["value"], facts["gpus"]) for facts in told) == sorted(
        [*((name, both) for name in degrees), ("mig_mode", second), ("mig_mode_pending", second)]
    )
    driver.answers(script(BOARDS))
    until(lambda: agent.unreadable(1, "ecc_mode") is None)


@pytest.mark.parametrize("signal", ["SIGSEGV", "SIGABRT"])
def test_a_library_that_crashes_at_one_gpu_is_named_and_the_others_are_read(
    agent: Agent, driver: Driver, signal: str
) -> None:
    until(lambda: agent.status is Status.HEALTHY)
    driver.answers(script(BOARDS, f"crash nvmlDeviceGetMigMode 1 {getattr(signals, signal).value}"))
    until(lambda: signal in agent.nvml.trouble)
    before = agent.read_at(0)
    until(lambda: agent.read_at(0) > before)
    driver.answers(script(BOARDS))
    polls(agent, 1)
    assert agent.status is Status.HEALTHY
