"""The return to service with a diagnosis demanded: the whole agent, on simulated GPUs and a stand-in engine."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.acting import Actor
from agent.actions.kube import KubeHands
from agent.actions.pretend import PretendCluster
from agent.checkup import Checkup
from agent.config import Config
from agent.daemon import Daemon
from agent.sources.commands import supervisor
from agent.sources.simulated import inject
from agent.sources.simulated_gpu import h100_8
from agent.world import HARD_TAINT
from tests.dcgm.standin import GENERATIONS, Engine

pytestmark = pytest.mark.parametrize("built", GENERATIONS[-1:], indirect=True)
SAME = "".join(f"gpu {i} {gpu.address} {gpu.uuid}\n" for i, gpu in enumerate(h100_8()))
WELL, BAD = "test memory 0 1 3 0 0\n", "test memory 3 1 3 58 2 a mismatch\n"


def tainted(cluster: PretendCluster) -> bool:
    return any(taint["key"] == HARD_TAINT for taint in cluster.read("nodes", "n1")["spec"].get("taints") or ())


@contextmanager
def agent(engine: Engine, folder: Path, cluster: PretendCluster) -> Iterator[Actor]:
    config = Config.model_validate({
        "mode": "evict", "poll_s": 0.5, "policy": {"soak_s": 1}, "budget": {"max_withdrawn": 1},
        "drain": {"gather_s": 0}, "repair": {"diagnose": 2},
        "sources": {"simulated": {"scenario": "idle"}, "pods": {"enabled": False},
                    "dcgm": {"address": engine.address, "bindings": engine.bindings, "library": engine.library}},
    })  # fmt: skip
    sources = supervisor(config, folder)
    hands = Checkup(KubeHands(cluster, "n1", config), sources.diagnose)
    actor = Actor(config, lambda: hands, False, lambda *_, **__: None)
    daemon, stop = Daemon(config, "n1", actor, lambda *_, **__: None, sources), threading.Event()
    thread = threading.Thread(target=daemon.run, args=(stop,))
    thread.start()
    try:
        yield actor
    finally:
        stop.set()
        thread.join(30)


def until(true: Callable[[], object], timeout_s: float = 90.0) -> None:
    due = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < due
        time.sleep(0.05)


@pytest.mark.parametrize(("found", "back"), [(WELL, True), (BAD, False)])
def test_a_repaired_gpu_returns_when_dcgm_finds_it_well_and_else_never(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: str, back: bool
) -> None:
    monkeypatch.setenv("DCGM_STANDIN", str(engine.file))
    engine.answers(found, SAME)
    cluster = PretendCluster()
    cluster.add_node("n1")
    with agent(engine, tmp_path, cluster) as actor:
        until(lambda: actor.started and not actor.waits)
        inject(tmp_path, {"gpu": 3, "xid": 95})
        until(lambda: tainted(cluster))
        assert not any("ActionValidate" in call for call in engine.calls())
        inject(tmp_path, {"gpu": 3, "clear": True})
        if back:
            until(lambda: not tainted(cluster))
        else:
            until(
                lambda: any(
                    "memory failed on" in wait.why and "a person must decide" in wait.why for wait in actor.waits
                )
            )
            assert tainted(cluster)
    assert [call for call in engine.calls() if "ActionValidate" in call] == ["dcgmActionValidate_v2 level=2 gpus=3"]
