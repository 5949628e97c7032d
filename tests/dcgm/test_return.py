"""The return to service with a diagnosis demanded: the whole agent, on simulated GPUs and a stand-in engine."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import yaml

from agent.actions.kube import KubeClient
from agent.config.settings import Config
from agent.model.names import GATE_TAINT, HARD_TAINT
from agent.runtime.actor import Actor
from agent.runtime.daemon import Daemon
from agent.runtime.diag_runner import DiagRunner
from agent.simulation.gpu import h100_8
from agent.simulation.in_memory_cluster import InMemoryCluster
from agent.simulation.simulated import inject
from agent.sources.process.command_lines import names, supervisor
from agent.sources.process.remote import Remote
from agent.sources.process.supervisor import Sources
from tests.dcgm.standin import GENERATIONS, Engine
from tests.waiting import LATEST_S, until

pytestmark = pytest.mark.parametrize("built", GENERATIONS[-1:], indirect=True)
SAME = "".join(f"gpu {i} {gpu.address} {gpu.uuid}\n" for i, gpu in enumerate(h100_8()))
# As the shipped reset leaves it, persistence mode may be off: that holds no GPU that is well.
WELL = "test memory 0 1 3 0 0\ntest software 2 1 3 29 5 it is off\nwhole software 3\n"
BAD = "test memory 3 1 3 58 2 a mismatch\n"


def tainted(cluster: InMemoryCluster, key: str = HARD_TAINT) -> bool:
    return any(taint["key"] == key for taint in cluster.read("nodes", "n1")["spec"].get("taints") or ())


@contextmanager
def agent(engine: Engine, folder: Path, cluster: InMemoryCluster, apart: bool) -> Iterator[Actor]:
    """``apart``: the sources, and the diagnosis with them, in a container of their own."""
    data = {
        "mode": "evict",
        "poll_s": 0.5,
        "policy": {"soak_s": 1},
        "budget": {"max_withdrawn": 1},
        "drain": {"gather_s": 0},
        "repair": {"diagnose": 2},
        "gate": {"enabled": True, "diagnose": 1},
        "sources": {
            "simulated": {"scenario": "idle"},
            "pods": {"enabled": False},
            "dcgm": {"address": engine.address, "bindings": str(engine.bindings), "library": str(engine.library)},
        },
    }
    config, there = Config.model_validate(data), folder / "s"
    with ExitStack() as stack:
        if apart:
            (folder / "config.yaml").write_text(yaml.safe_dump(data))
            command = ["sources", "--config", str(folder / "config.yaml"), "--socket", str(there)]
            other = subprocess.Popen(
                [sys.executable, "-m", "agent", *command, "--simulation-dir", str(folder)], stderr=subprocess.DEVNULL
            )
            stack.enter_context(other)
            stack.callback(other.terminate)
        sources: Sources = Remote(there, names(config)) if apart else supervisor(config, folder)
        yield stack.enter_context(acting(config, sources, cluster))


@contextmanager
def acting(config: Config, sources: Sources, cluster: InMemoryCluster) -> Iterator[Actor]:
    client = DiagRunner(KubeClient(cluster, "n1", config), sources.diagnose)
    actor = Actor(config, lambda: client, False, lambda *_, **__: None)
    daemon, stop = Daemon(config, "n1", actor, lambda *_, **__: None, sources), threading.Event()
    thread = threading.Thread(target=daemon.run, args=(stop,))
    thread.start()
    try:
        yield actor
    finally:
        stop.set()
        thread.join(LATEST_S)


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize(("found", "back"), [(WELL, True), (BAD, False)])
def test_a_repaired_gpu_returns_when_dcgm_finds_it_well_and_else_never(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: str, back: bool, apart: bool
) -> None:
    monkeypatch.setenv("DCGM_STANDIN", str(engine.file))
    engine.answers(found, SAME)
    cluster = InMemoryCluster()
    cluster.add_node("n1")
    with agent(engine, tmp_path, cluster, apart) as actor:
        until(lambda: actor.exchange.acted.started and not actor.exchange.acted.waits)
        inject(tmp_path, {"gpu": 3, "xid": 95})
        until(lambda: tainted(cluster))
        assert not any("ActionValidate" in call for call in engine.calls())
        inject(tmp_path, {"gpu": 3, "clear": True})
        if back:
            until(lambda: not tainted(cluster))
        else:
            until(
                lambda: any(
                    "memory failed on" in wait.why and "a person must decide" in wait.why
                    for wait in actor.exchange.acted.waits
                )
            )
            assert tainted(cluster)
    assert [call for call in engine.calls() if "ActionValidate" in call] == ["dcgmActionValidate_v2 level=2 gpus=3"]


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize(("found", "opens"), [(WELL, True), (BAD, False)])
def test_a_new_node_takes_pods_when_dcgm_finds_it_well_and_else_never(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: str, opens: bool, apart: bool
) -> None:
    monkeypatch.setenv("DCGM_STANDIN", str(engine.file))
    engine.answers(found, SAME)
    cluster = InMemoryCluster()
    cluster.add_node("n1")
    taint = {"spec": {"taints": [{"key": GATE_TAINT, "effect": "NoSchedule"}]}}
    cluster("PATCH", "/api/v1/nodes/n1", taint, "application/merge-patch+json")
    with agent(engine, tmp_path, cluster, apart) as actor:
        if opens:
            until(lambda: not tainted(cluster, GATE_TAINT))
        else:
            until(lambda: any("a person must decide" in wait.why for wait in actor.exchange.acted.waits))
            assert tainted(cluster, GATE_TAINT)
    (call,) = [call for call in engine.calls() if "ActionValidate" in call]
    assert call.startswith("dcgmActionValidate_v2 level=1 gpus=")
    assert len(call.rpartition("=")[2].split(",")) == 8
