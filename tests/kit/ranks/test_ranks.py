"""Four ranks are one training: asked, ended, killed or replaced together, and restored at one step. With PyTorch."""

from __future__ import annotations

import http.client
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import train_ranks
from checkpoint import Folder
from directory import marked
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from tests.kit.conftest import KIT, until
from tests.kit.kills import Life

assert train_ranks  # imported before lives are forked
Begin = Callable[..., Life]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    begun: list[Life] = []

    def live(*extra: str, ranks: int = 4, run: str = "run") -> Life:
        own = [f"--folder={tmp_path / run}", "--width=16", "--port=0", "--interval-s=1000", *extra]
        begun.append(Life(tmp_path, len(begun), ranks, "train_ranks", own))
        return begun[-1]

    yield live
    for life in begun:
        life.end()
        print(*(log.read_text()[-2000:] for log in life.logs), sep="\n")


def answered(life: Life, rank: int) -> bool:
    """Whether this rank, asked to save, says that it has."""
    (port,) = re.findall(r"port (\d+)", life.logs[rank].read_text())
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=10)
    try:
        connection.request("POST", "/checkpoint")
        return connection.getresponse().status == 200
    finally:
        connection.close()


def state(folder: Path, into: Path) -> tuple[int, dict[str, Any]]:
    """The newest whole checkpoint, put together of its shards."""
    paths: list[Path] = []

    def load(file: Any) -> None:
        found = marked(file)
        assert found
        paths.append(found[0])

    found = Folder(folder).restore(load)
    assert found
    dcp_to_torch_save(paths[0], into)
    return found.step, torch.load(into, weights_only=True)["model"]


def test_whichever_rank_is_asked_all_save_at_the_same_step(begin: Begin) -> None:
    life = begin("--step-s=0.01")
    life.until("training from step")
    for rank in (2, 0):
        until(partial(answered, life, rank))
    until(lambda: all(len(steps) >= 3 for steps in life.said("saved")))
    said = [steps[:3] for steps in life.said("saved")]
    assert said == [said[0]] * 4
    assert said[0][0] == 0 < said[0][1] <= said[0][2]


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_rank_that_is_ended_takes_all_along_after_they_saved_at_one_step(begin: Begin, parallel: str) -> None:
    life = begin("--step-s=0.01", f"--parallel={parallel}")
    life.until("training from step")
    os.kill(life.processes[1], signal.SIGTERM)
    assert life.wait() == [76, 143, 76, 76]
    (last,) = {steps[-1] for steps in life.said("saved")}
    again = begin("--step-s=0.01", f"--parallel={parallel}")
    again.until("training from step")
    assert again.said("restored") == [[last]] * 4


def test_another_number_of_ranks_goes_on_as_an_undisturbed_training(begin: Begin, tmp_path: Path) -> None:
    assert begin("--steps=40", run="undisturbed").wait() == [0] * 4
    assert begin("--steps=15").wait() == [0] * 4
    assert begin("--steps=30", "--parallel=ddp", ranks=2).wait() == [0] * 2
    assert begin("--steps=40", ranks=1).wait() == [0]
    (steps, one), (_, other) = (state(tmp_path / run, tmp_path / f"{run}.pt") for run in ("run", "undisturbed"))
    assert steps == 40
    assert one.keys() == other.keys()
    assert all(torch.allclose(one[name], other[name], atol=1e-5) for name in one)


def test_the_older_of_two_gangs_stops_on_every_rank(begin: Begin) -> None:
    old = begin("--step-s=0.01", "--interval-s=0.2", ranks=2)
    old.until("training from step")
    new = begin("--step-s=0.01", "--interval-s=0.2", ranks=2)
    assert old.wait() == [75, 75]
    new.until("training from step")


def test_a_shard_that_is_damaged_is_passed_over_by_all_ranks(begin: Begin, tmp_path: Path) -> None:
    assert begin("--steps=10").wait() == [0] * 4
    assert begin("--steps=20").wait() == [0] * 4
    folder = Folder(tmp_path / "run")
    found: list[Any] = []
    folder.restore(lambda file: found.append(marked(file)))
    shard = sorted(found[0][0].glob("__2_*"))[0]
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    life = begin("--step-s=0.01")
    life.until("training from step")
    assert life.said("restored") == [[10]] * 4


def test_twenty_kills_break_no_restore_and_every_rank_is_at_one_step() -> None:
    program = [sys.executable, "-m", "tests.kit.kills", "--kills=20", "--ranks=4"]
    done = subprocess.run(program, cwd=KIT.parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "20 kills -9 over 4 rank(s)" in done.stdout


def test_torchrun_starts_all_ranks_anew_after_one_was_killed(tmp_path: Path) -> None:
    program = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=3"]
    own = [f"--folder={tmp_path / 'run'}", "--width=16", "--port=0", "--interval-s=0.2", "--step-s=0.02"]
    log = tmp_path / "log"
    with log.open("wb") as out:
        run = subprocess.Popen([*program, str(KIT / "train_ranks.py"), *own], stdout=out, stderr=out)
    try:
        until(lambda: len(re.findall(r"saved step (\d+)", log.read_text())) > 6, 120)
        children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)
        restored = until(lambda: re.findall(r"restored step (\d+)", log.read_text())[1:], 120)
        assert set(restored) == set(re.findall(r"restored step (\d+)", log.read_text()))
    finally:
        run.terminate()
        run.wait()
        print(log.read_text()[-3000:])
