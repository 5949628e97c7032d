"""``diagnose`` through NVIDIA's bindings over the stand-in engine, and when it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent import cli
from agent.commands.diagnose import RefusedDiagnosisError, chosen, refusal, uuids, with_missing
from agent.config.settings import Config
from agent.model.errors import UsageError
from agent.model.fault import Verdict
from agent.runtime.daemon import Daemon, serve
from agent.simulation.gpu import h100_8
from agent.sources.dcgm.diag_process import failures
from agent.sources.process.command_lines import names, supervisor
from agent.sources.process.remote import Remote
from agent.sources.process.supervisor import Sources
from tests.dcgm.standin import Engine
from tests.waiting import LATEST_S, until

A, B = "0000:1b:00.0", "0000:43:00.0"
WELL = "test memory 0 1 0 0 0\ntest memory 0 1 1 0 0\ntest environment 0 0 0 0 0\n"
IDLE: dict[str, Any] = {
    "gpus": {A: {"uuid": "GPU-a", "index": 0, "processes": ""}, B: {"uuid": "GPU-b", "index": 1, "processes": "71,72"}}
}


def diagnosed(engine: Engine, level: int, *gpus: str) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, "-W", "error", "-m", "agent.sources.dcgm.diag", "--level", str(level)]
    done = subprocess.run(
        [*command, *engine.options(), "--gpus", ",".join(gpus)],
        env=engine.environment(),
        capture_output=True,
        text=True,
    )
    return done.returncode, json.loads(done.stdout)


def test_a_diagnosis_that_passes_says_what_was_tested_on_which_gpu(engine: Engine) -> None:
    engine.answers(WELL)
    code, told = diagnosed(engine, 2, "GPU-a", "GPU-b")
    assert (code, told["passed"], told["gpus"], told["errors"]) == (0, True, [A, B], [])
    assert told["results"][A]["memory"] == told["results"][B]["memory"] == "pass"
    assert "dcgmActionValidate_v2 level=2 gpus=0,1" in engine.calls()


def test_one_gpu_alone_can_be_diagnosed(engine: Engine) -> None:
    engine.answers("test memory 0 1 1 0 0\n")
    told = diagnosed(engine, 1, "GPU-b")[1]
    assert (told["gpus"], told["passed"]) == ([B], True)
    assert "dcgmActionValidate_v2 level=1 gpus=1" in engine.calls()


def test_a_failed_test_names_the_gpu_by_its_entity_and_the_reason(engine: Engine) -> None:
    engine.answers("test memory 0 1 0 0 0\ntest memory 3 1 1 58 2 a mismatch on GPU 0\n")
    code, told = diagnosed(engine, 3, "GPU-a", "GPU-b")
    assert (code, told["passed"]) == (1, False)
    assert (told["results"][A]["memory"], told["results"][B]["memory"]) == ("pass", "fail")
    assert [(e["gpu"], e["test"], e["code"]) for e in told["errors"]] == [(B, "memory", 58)]


# As a real engine was seen to answer: of one GPU's error, or of the node's configuration, all GPUs are warned, the test
# as a whole fails, and one error says why.
SRAM = "test software 2 1 0 0 0\ntest software 2 1 1 118 2 the SRAM threshold was passed\nwhole software 3\n"
PERSISTENCE = "test software 2 1 0 29 5 it is off\ntest software 2 1 1 0 0\nwhole software 3\n"


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_an_error_fails_its_test_at_every_level_whatever_result_stands_beside_it(engine: Engine, level: int) -> None:
    engine.answers(WELL + SRAM)
    code, told = diagnosed(engine, level, "GPU-a", "GPU-b")
    assert (code, told["passed"], [e["code"] for e in told["errors"]]) == (1, False, [118])
    assert "the SRAM threshold was passed" in failures(told)
    if told["results"][B].get("software"):  # DCGM 3 tests the software of the node, not of each GPU
        assert told["errors"][0]["gpu"] == B
        assert (told["results"][A]["software"], told["results"][B]["software"]) == ("warn", "fail")


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_how_the_node_is_set_up_is_told_and_holds_no_gpu_that_is_well(engine: Engine, level: int) -> None:
    engine.answers((WELL if level > 1 else "") + PERSISTENCE)
    code, told = diagnosed(engine, level, "GPU-a", "GPU-b")
    assert (code, told["passed"], told["untested"], [e["code"] for e in told["errors"]]) == (0, True, [], [29])


def test_a_test_that_failed_and_says_no_more_has_failed(engine: Engine, built: tuple[Path, Path]) -> None:
    engine.answers(WELL + "whole memory 3\n")
    by_test = "numTests" in (built[0] / "dcgm_structs.py").read_text()
    assert diagnosed(engine, 2, "GPU-a")[1]["passed"] is not by_test, "DCGM 3 has no such word"


def test_a_warning_without_an_error_is_told_and_fails_nothing(engine: Engine) -> None:
    engine.answers("test memory 2 1 0 0 0\ntest environment 0 0 0 0 0\n")
    code, told = diagnosed(engine, 2, "GPU-a")
    assert (code, told["results"][A]["memory"]) == (0, "warn")


def test_a_diagnosis_in_which_nothing_was_run_is_not_passed(engine: Engine) -> None:
    assert diagnosed(engine, 1, "GPU-a")[1]["passed"] is False


@pytest.mark.parametrize("more", ["", "test memory 1 1 1 0 0\n"])
def test_a_gpu_that_was_skipped_or_is_in_no_result_is_named_and_passed_by_no_neighbour(
    engine: Engine, more: str
) -> None:
    engine.answers(f"test memory 0 1 0 0 0\n{more}test environment 0 0 0 0 0\n")
    assert diagnosed(engine, 2, "GPU-a")[1]["passed"] is True
    told = diagnosed(engine, 2, "GPU-a", "GPU-b")[1]
    assert (told["passed"], told["untested"]) == (False, [B])
    assert f"{B} was not tested" in failures(told)


def test_an_engine_of_dcgm_4_is_told_that_somebody_still_waits(engine: Engine, built: tuple[Path, Path]) -> None:
    engine.answers(f"{WELL}slow dcgmActionValidate_v2 0.5\n")
    diagnosed(engine, 1, "GPU-a")
    beats = "SetEnableHeartbeat" in (built[0] / "DcgmDiag.py").read_text()
    assert ("dcgmDiagSendHeartbeat " in engine.calls()) is beats


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (-39, "another diagnosis runs"),
        (-34, "another diagnosis runs"),
        (-52, "has no diagnosis"),
        (-21, "ended the connection"),
        (-21, "an nvvs that a killed engine left holds its port"),
        (-11, "does not answer (DCGM error -11); an nvvs that a killed engine left holds its port"),
        (-12, "versions"),
    ],
)
def test_what_keeps_it_from_running_is_no_result(engine: Engine, status: int, words: str) -> None:
    engine.answers(f"error dcgmActionValidate_v2 {status}\n")
    code, told = diagnosed(engine, 1, "GPU-a")
    assert (code, words in told["error"]) == (1, True)


def test_an_engine_that_asks_for_isolation_has_found_something(engine: Engine) -> None:
    engine.answers("error dcgmActionValidate_v2 -51\n")
    told = diagnosed(engine, 1, "GPU-a")[1]
    assert (told["passed"], told["errors"][0]["code"]) == (False, -51)


def test_a_gpu_that_dcgm_does_not_list_is_said(engine: Engine) -> None:
    assert "DCGM lists no GPU GPU-z" in diagnosed(engine, 1, "GPU-z")[1]["error"]


@pytest.mark.parametrize(("name", "pci"), [(A, A), ("GPU-b", B), ("1", B)])
def test_a_gpu_has_three_names(name: str, pci: str) -> None:
    assert chosen(IDLE, [name]) == [pci]
    with pytest.raises(UsageError, match="none of this node's GPUs"):
        chosen(IDLE, ["7"])
    with pytest.raises(RefusedDiagnosisError):
        chosen({"gpus": {}}, [])


@pytest.mark.parametrize(
    ("level", "withdrawn", "gpu", "why"),
    [(1, False, B, ""), (2, True, A, ""), (2, False, A, "in service"), (2, True, B, "pids 71,72")],
)
def test_what_takes_the_gpu_needs_it_idle_and_the_node_withdrawn(
    level: int, withdrawn: bool, gpu: str, why: str
) -> None:
    said = refusal(IDLE, withdrawn, level, [gpu])
    assert why in said
    assert bool(said) == bool(why)


def test_a_gpu_whose_processes_nobody_knows_is_not_idle() -> None:
    assert "nobody knows who" in refusal({"gpus": {A: {}}}, True, 2, [A])


def test_while_the_agent_keeps_off_the_gpus_nothing_is_diagnosed() -> None:
    assert "keeps off the GPUs (a reset)" in refusal({**IDLE, "aside": "a reset"}, True, 1, [A])


def test_a_gpu_without_a_uuid_is_none_that_dcgm_would_know() -> None:
    assert uuids(IDLE, [B, A]) == ["GPU-b", "GPU-a"]
    with pytest.raises(RefusedDiagnosisError, match=f"GPU {A} says no UUID"):
        uuids({"gpus": {A: {"uuid": "unreadable"}}}, [A])


@pytest.mark.parametrize(
    "known",
    [
        {"cards": {A: "GPU-a", B: "GPU-b"}},
        {"faults": [{"pci": B}, {"pci": ""}]},  # missing since before the agent's first start, say
        {"unseen": {"kmsg": {"pci": ""}, f"GPU {B}": {"pci": B}}},
    ],
)
def test_a_node_of_which_a_gpu_is_not_read_is_not_passed(known: dict[str, Any]) -> None:
    passed = {"passed": True, "untested": []}
    assert with_missing(passed, {**IDLE, **known}) == passed
    assert with_missing(passed, {"gpus": {A: IDLE["gpus"][A]}, **known}) == {"passed": False, "untested": [B]}


@pytest.fixture(params=["in one container", "in two"])
def running(
    request: pytest.FixtureRequest, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[str]]:
    """How to ask about an agent that runs on simulated GPUs and reads this engine."""
    monkeypatch.setenv("DCGM_STANDIN", str(engine.file))
    data: dict[str, Any] = {
        "http": {"address": "127.0.0.1", "port": 0},
        "sources": {
            "simulated": {"scenario": "idle"},
            "pods": {"enabled": False},
            "dcgm": {"address": engine.address, "bindings": str(engine.bindings), "library": str(engine.library)},
        },
    }
    config, path, socket = Config.model_validate(data), tmp_path / "config.yaml", tmp_path / "s"
    path.write_text(yaml.safe_dump(data))
    with ExitStack() as stack:
        there: Sources = supervisor(config, tmp_path)
        if request.param == "in two":
            command = ["sources", "--config", str(path), "--socket", str(socket), "--simulation-dir", str(tmp_path)]
            other = stack.enter_context(subprocess.Popen([sys.executable, "-m", "agent", *command]))
            stack.callback(other.terminate)
            there = Remote(socket, names(config))
        stack.enter_context(judging(config, there, data))
        path.write_text(yaml.safe_dump(data))
        yield ["--config", str(path), *(["--sources", str(socket)] if request.param == "in two" else [])]


@contextmanager
def judging(config: Config, sources: Sources, data: dict[str, Any]) -> Iterator[None]:
    """Until it reads the GPUs; ``data`` is told its port."""
    daemon, ready = Daemon(config, "n", None, lambda *_, **__: None, sources), threading.Event()

    def judged(verdict: Verdict) -> None:
        if not verdict.blind and daemon.snapshot and len(daemon.snapshot.readings) == 8:
            ready.set()

    daemon.judged = judged
    server, stop = serve(config, daemon), threading.Event()
    thread = threading.Thread(target=daemon.run, args=(stop,))
    thread.start()
    try:
        assert ready.wait(60)
        data["http"]["port"] = server.port
        yield
    finally:
        stop.set()
        thread.join(LATEST_S)
        server.shutdown()


SAME = "".join(f"gpu {i} {gpu.address} {gpu.uuid}\n" for i, gpu in enumerate(h100_8()[:2]))


def test_the_command_asks_the_running_agent_and_prints_json(
    engine: Engine, running: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    engine.answers(WELL, SAME)
    asked = ["--gpu", A, "--gpu", B, *running]
    assert cli.main(["diagnose", "--level", "1", *asked]) == 0
    assert json.loads(capsys.readouterr().out)["passed"] is True
    assert cli.main(["diagnose", "--level", "2", *asked]) == 75
    assert "the node is in service" in capsys.readouterr().err
    assert cli.main(["diagnose", "--level", "2", "--force", *asked]) == 0
    engine.answers("test memory 3 1 0 58 2 bad\n", SAME)
    assert cli.main(["diagnose", "--level", "1", *asked]) == 1
    assert cli.main(["diagnose", "--level", "1", "--gpu", "99", *running]) == 64
    capsys.readouterr()
    each = enumerate(h100_8())
    engine.answers("test memory 0 1 0 0 0\n", "".join(f"gpu {i} {gpu.address} {gpu.uuid}\n" for i, gpu in each))
    assert cli.main(["diagnose", "--level", "2", "--force", *running]) == 1, "all GPUs of which one alone was tested"
    assert len(json.loads(capsys.readouterr().out)["untested"]) == 7


def test_whoever_asked_and_is_gone_leaves_no_diagnosis_behind_and_the_engine_is_told_to_stop(
    engine: Engine, running: list[str]
) -> None:
    engine.answers(f"{WELL}hang dcgmActionValidate_v2\n", SAME)
    command = [sys.executable, "-m", "agent", "diagnose", "--level", "1", "--gpu", A, *running]
    with subprocess.Popen(command, env=engine.environment(), stderr=subprocess.DEVNULL) as asking:
        until(lambda: any(call.startswith("dcgmActionValidate_v2") for call in engine.calls()))
        asking.kill()
    until(lambda: "dcgmStopDiagnostic " in engine.calls())
