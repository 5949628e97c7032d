"""The whole agent with a second witness that fails in every way: named, and no fault of the others lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.config.settings import Config
from agent.model.fault import Status
from agent.runtime.daemon import Daemon
from agent.simulation.gpu import h100_8
from agent.sources.process.command_lines import supervisor
from agent.status.snapshot import Snapshot, SourceView
from tests.dcgm.standin import GENERATIONS, Engine
from tests.waiting import LATEST_S

pytestmark = pytest.mark.parametrize("built", GENERATIONS[-1:], indirect=True)
SAME = "".join(f"gpu {i} {gpu.address} {gpu.uuid}\n" for i, gpu in enumerate(h100_8()[:2]))
XID = "3,{seq},1,-;NVRM: Xid (PCI:0000:43:00): 79, GPU has fallen off the bus.\n"


class Agent:
    """A daemon over simulated GPUs and a stand-in engine, and what it logged."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.folder, self.told = folder, list[tuple[str, Any]]()
        config = Config.model_validate(
            {
                "poll_s": 1.0,
                "sources": {
                    "simulated": {"scenario": "idle"},
                    "pods": {"enabled": False},
                    "dcgm": {
                        "address": engine.address,
                        "bindings": engine.bindings,
                        "library": engine.library,
                        "poll_s": 0.2,
                        "health_s": 0.2,
                    },
                },
            }
        )
        self.daemon = Daemon(config, "n", None, self._tell, supervisor(config, folder))

    def _tell(self, what: str, **facts: Any) -> None:
        self.told.append((what, facts.get("why")))

    @property
    def shot(self) -> Snapshot | None:
        return self.daemon.snapshot

    def dcgm(self) -> SourceView:
        assert self.shot
        return next(source for source in self.shot.sources if source.name == "dcgm")

    def until(self, true: Callable[[], object], timeout_s: float = 60.0) -> None:
        end = time.monotonic() + timeout_s
        while not (self.shot and true()):
            assert time.monotonic() < end, (self.shot, self.told)
            time.sleep(0.02)

    def status(self) -> Status | None:
        return self.shot.verdict.status if self.shot else None

    def rules(self) -> list[str]:
        return [fault.finding.rule for fault in self.shot.verdict.faults] if self.shot else []

    def kernel(self, text: str) -> None:
        with (self.folder / "kmsg").open("a") as log:
            log.write(text)


@contextmanager
def agent(engine: Engine, folder: Path, environment: pytest.MonkeyPatch) -> Iterator[Agent]:
    environment.setenv("DCGM_STANDIN", str(engine.file))
    engine.answers(gpus=SAME)
    one, stop = Agent(engine, folder), threading.Event()
    thread = threading.Thread(target=one.daemon.run, args=(stop,))
    thread.start()
    try:
        yield one
    finally:
        stop.set()
        thread.join(LATEST_S)


@pytest.mark.parametrize(
    ("behaviour", "named"),
    [
        ("hang dcgmHealthCheck\n", "checking health has not returned"),
        ("hang dcgmEntitiesGetLatestValues\n", "reading fields has not returned"),
        ("error * -12\n", "versions that don't go together"),
        ("error * -21\n", "ended the connection"),
        ("crash dcgmHealthCheck\n", "SIGABRT"),
    ],
)
def test_an_engine_that_fails_is_named_and_hides_no_fault(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, behaviour: str, named: str
) -> None:
    with agent(engine, tmp_path, monkeypatch) as one:
        one.until(lambda: one.status() is Status.HEALTHY and one.dcgm().up)
        engine.answers(behaviour, SAME)
        one.until(lambda: not one.dcgm().up and named in one.dcgm().trouble)
        assert one.status() is Status.HEALTHY
        one.kernel(XID.format(seq=5000))
        one.until(lambda: one.status() is Status.UNHEALTHY)
        assert one.rules() == ["xid-79"]
        assert one.shot
        assert one.shot.verdict.blind_lines == ()
        starts = {source.name: source.starts for source in one.shot.sources}
        assert (starts["nvml"], starts["kmsg"]) == (1, 1)
        engine.answers(gpus=SAME)


def test_an_engine_that_comes_back_is_read_again_and_told_in_the_log(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with agent(engine, tmp_path, monkeypatch) as one:
        one.until(lambda: one.dcgm().version == "stand-in")
        assert one.dcgm().up
        engine.answers("error * -21\n", SAME)
        one.until(lambda: not one.dcgm().up)
        engine.answers(gpus=SAME)
        one.until(lambda: one.dcgm().up)
        words = [what for what, _ in one.told if what.startswith("the second witness")]
        assert words[:2] == ["the second witness can't see", "the second witness sees"]


def test_an_engine_that_needs_45_s_is_named_meanwhile_hides_no_fault_and_keeps_its_process(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As real ones were seen to, in a storm of correctable errors. The other tests run while this one waits."""
    with agent(engine, tmp_path, monkeypatch) as one:
        one.until(lambda: one.dcgm().up)
        pid, began = one.dcgm().pid, time.monotonic()
        engine.answers("slow dcgmHealthCheck 45\n", SAME)
        one.until(lambda: "checking health has not returned" in one.dcgm().trouble)
        engine.answers(gpus=SAME)
        one.kernel(XID.format(seq=5000))
        one.until(lambda: one.status() is Status.UNHEALTHY)
        assert time.monotonic() - began < 45, "nobody waited for the engine"
        one.until(lambda: one.dcgm().up, timeout_s=120)
        assert time.monotonic() - began >= 45
        assert (one.dcgm().pid, one.dcgm().starts, one.rules()) == (pid, 1, ["xid-79"])


def test_both_witnesses_of_one_fault_are_seen_in_the_running_agent(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0000:43:00.0 is a GPU of the simulation as of the engine."""
    with agent(engine, tmp_path, monkeypatch) as one:
        one.until(lambda: one.dcgm().up and one.status() is Status.HEALTHY)
        one.kernel(XID.format(seq=5000))
        assert "dcgm-elsewhere" not in one.rules()
        text = "GPU 0 fell off the bus (triggered by XID 79: x)"
        engine.answers(f"xid 1 1 79 {int(time.time() * 1e6)}\nincident ffffffff 20 120 1 1 {text}\n", SAME)
        one.until(
            lambda: one.shot
            and any({"kmsg", "dcgm"} <= {word.source for word in fault.witnesses} for fault in one.shot.verdict.faults)
        )
        assert one.rules() == ["xid-79"]
