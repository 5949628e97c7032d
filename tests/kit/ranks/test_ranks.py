"""Four ranks are one training: asked, ended, killed or replaced together, and restored at one step. With PyTorch."""

from __future__ import annotations

import errno
import http.client
import os
import re
import shutil
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
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from tests.kit.conftest import KIT, until
from tests.kit.kills import Life, warm

assert train_ranks  # imported before lives are forked, and below what it imports later
Begin = Callable[..., Life]


@pytest.fixture(scope="module", autouse=True)
def imported(tmp_path_factory: pytest.TempPathFactory) -> None:
    warm("train_ranks", tmp_path_factory.mktemp("warm"))


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
    assert begin("--steps=35", ranks=1).wait() == [0]
    assert begin("--steps=40").wait() == [0] * 4
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


def test_a_shard_that_one_rank_cannot_read_for_a_moment_is_waited_for_by_all(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert begin("--steps=10", ranks=2).wait() == [0] * 2

    class Ill(FileSystemReader):  # type: ignore[misc]  # it ships no type information
        failed = False

        def read_data(self, *arguments: Any) -> Any:
            if os.environ["RANK"] == "1" and not Ill.failed:
                Ill.failed = True
                raise OSError(errno.ESTALE, "of this test")
            return super().read_data(*arguments)

    monkeypatch.setattr("torch.distributed.checkpoint.FileSystemReader", Ill)  # the lives are forked of this process
    life = begin("--step-s=0.01", ranks=2)
    life.until("training from step")
    assert life.said("restored") == [[10]] * 2
    assert all("can't restore" in log.read_text() for log in life.logs)


def test_a_checkpoint_of_another_model_ends_all_ranks_with_its_word(begin: Begin) -> None:
    assert begin("--steps=10", ranks=2).wait() == [0] * 2
    life = begin("--width=8", ranks=2)
    assert life.wait() == [1, 1]
    assert all("can't go on: the checkpoint is of another model" in log.read_text() for log in life.logs)


def test_what_the_folder_lost_comes_back_from_the_backup_on_every_rank(begin: Begin, tmp_path: Path) -> None:
    assert begin("--steps=10").wait() == [0] * 4
    folder, backup = tmp_path / "run", tmp_path / "backup"
    manager = [sys.executable, str(KIT / "checkpoint_manager.py"), f"--folder={folder}", f"--backup={backup}"]
    subprocess.run(manager, check=True)
    for damage in (shutil.rmtree, broken):
        damage(folder)
        life = begin("--step-s=0.01", f"--restore-from={backup}")
        life.until("training from step")
        assert life.said("restored") == [[10]] * 4
        life.end()


def broken(folder: Path) -> None:
    there = Folder(folder)
    for number in there.numbers():
        if not there.is_claim(number):
            os.truncate(there.file(number), 50)


def test_twenty_kills_break_no_restore_and_every_rank_is_at_one_step() -> None:
    program = [sys.executable, "-m", "tests.kit.kills", "--kills=20", "--ranks=4"]
    done = subprocess.run(program, cwd=KIT.parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "20 kills -9 over 4 rank(s)" in done.stdout
