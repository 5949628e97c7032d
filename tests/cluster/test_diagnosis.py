"""DCGM's diagnosis before the return, on a real API server, by an agent that is killed in the middle of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.simulation.gpu import h100_8
from tests.cluster.conftest import Site, StartAgent
from tests.cluster.test_repair import UNHEALTHY, jobs
from tests.dcgm.standin import Engine, bindings, library


@pytest.mark.parametrize(("found", "back"), [("test memory 0 1 3 0 0\n", True), ("test memory 3 1 3 58 2 x\n", False)])
def test_killed_while_dcgm_diagnoses_the_gpu_it_is_diagnosed_once_more_and_that_decides(
    site: Site, agent: StartAgent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: str, back: bool
) -> None:
    folder = bindings("3")
    engine = Engine(tmp_path, folder, library(folder, tmp_path / "library"))
    monkeypatch.setenv("DCGM_STANDIN", str(engine.file))
    gpus = "".join(f"gpu {i} {gpu.address} {gpu.uuid}\n" for i, gpu in enumerate(h100_8()))
    engine.answers("hang dcgmActionValidate_v2\n", gpus)
    there = {"address": engine.address, "bindings": str(folder), "library": str(engine.library)}
    repair = {"reset_gpu": "gpu-reset", "pause_s": 1, "diagnose": 2}
    running = agent(simulate="idle", repair=repair, sources={"dcgm": there})
    site.plane.wait("healthy", lambda: running.state()["status"] == "healthy")
    running.inject("--gpu", "3", "--xid", "95")
    site.plane.wait("a Job", lambda: len(jobs(site)) == 1)
    running.inject("--gpu", "3", "--clear")  # what the Job would have done

    def diagnoses() -> int:
        return sum(call == "dcgmActionValidate_v2 level=2 gpus=3" for call in engine.calls())

    site.plane.wait("diagnosed", lambda: diagnoses() == 1)
    site.plane.wait("told", lambda: any("runs before the return" in why for why in running.state()["waits"]))
    running.kill()
    assert site.taints() == [UNHEALTHY]
    engine.answers(found, gpus)
    running.start()
    if back:
        site.plane.wait("returned", lambda: site.taints() == [] and running.state()["status"] == "healthy")
    else:
        site.plane.wait("failed", lambda: any("memory failed on" in why for why in running.state()["waits"]))
        events = site.plane.must("GET", "/api/v1/namespaces/default/events")["items"]
        told = [e for e in events if (e["reason"], e["involvedObject"]["name"]) == ("CheckFailed", site.nodes[0])]
        assert (site.taints(), len(told)) == ([UNHEALTHY], 1)
    assert (diagnoses(), len(jobs(site))) == (2, 1)
    engine.stops_listening()
