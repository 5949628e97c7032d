"""What the folder lost comes back from the backup by itself, and the chain of both goes on."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoint import BrokenError, FencedError, Folder
from model import model

from tests.kit.conftest import KIT, Start, newest, save, until


class Run:
    """A run's folder with two checkpoints, and their copies."""

    def __init__(self, path: Path) -> None:
        self.path, self.backup = path / "run", path / "backup"
        self.writer = Folder(self.path)
        self.writer.claim()
        for step in (10, 20):
            save(self.writer, step, b"state after %d" % step)
            assert self.manage()[0] == 0

    def manage(self) -> tuple[int, str]:
        program = [sys.executable, str(KIT / "checkpoint_manager.py")]
        done = subprocess.run(
            [*program, f"--folder={self.path}", f"--backup={self.backup}"], capture_output=True, text=True
        )
        return done.returncode, done.stdout + done.stderr

    def lost(self) -> None:
        shutil.rmtree(self.path)

    def broken(self) -> None:
        for number in self.writer.numbers():
            if not self.writer.is_claim(number):
                os.truncate(self.writer.file(number), 50)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


@pytest.mark.parametrize("damage", [Run.lost, Run.broken])
def test_a_lost_or_broken_folder_is_restored_from_its_backup_and_the_manager_goes_on(run: Run, damage: object) -> None:
    damage(run)  # type: ignore[operator]
    code, said = run.manage()
    assert code == 1
    assert f"--restore-from={run.backup} goes on from step 20" in said
    assert "checkpoint_backup_step 20" in said
    assert "checkpoint_saved_timestamp_seconds" not in said, "what was known of it stays known"
    after = Folder(run.path, backup=run.backup)
    after.claim()
    assert newest(after) == (20, b"state after 20")
    save(after, 30, b"state after 30")
    assert run.manage()[0] == 0
    assert newest(Folder(run.backup)) == (30, b"state after 30")


def test_what_is_whole_in_both_comes_from_the_folder_and_what_is_newer_in_it_as_well(run: Run) -> None:
    both = Folder(run.path, backup=run.backup)
    found = both.restore()
    assert found is not None
    assert found.file.parent == run.path
    save(run.writer, 30, b"state after 30")
    assert newest(both) == (30, b"state after 30")


def test_a_backup_that_cannot_be_listed_stops_nobody_whose_folder_is_whole(run: Run) -> None:
    run.lost()
    shutil.rmtree(run.backup)
    run.backup.write_text("no folder")  # listing it is an OSError
    empty = Folder(run.path, backup=run.backup)
    with pytest.raises(OSError, match="Not a directory"):
        empty.claim()
    with pytest.raises(OSError, match="Not a directory"):
        empty.restore(patience_s=0)
    whole = Folder(run.path)
    whole.claim()
    save(whole, 5, b"here")
    again = Folder(run.path, backup=run.backup)
    again.claim()
    assert newest(again) == (5, b"here")


def test_broken_checkpoints_and_no_backup_are_never_taken_for_a_new_run(run: Run) -> None:
    run.broken()
    with pytest.raises(BrokenError, match="none of 2 checkpoints is whole"):
        Folder(run.path).restore()
    os.truncate(Folder(run.backup).file(Folder(run.backup).numbers()[0]), 50)
    assert newest(Folder(run.path, backup=run.backup)) == (10, b"state after 10"), "the backup's older one"


def test_a_writer_that_slept_through_the_loss_adds_nothing_that_counts(run: Run) -> None:
    """It is ahead of the backup: its next numbers must not be the new writer's."""
    for step in (30, 40):
        save(run.writer, step, b"never copied")
    run.lost()
    after = Folder(run.path, backup=run.backup)
    after.claim()
    with pytest.raises(FencedError):
        save(run.writer, 50, b"old")
    save(after, 21, b"new")
    assert newest(after) == (21, b"new")


def test_a_folder_that_is_removed_under_a_running_training_is_made_anew_by_the_next_save(run: Run) -> None:
    run.lost()
    save(run.writer, 30, b"state after 30")
    assert newest(run.writer) == (30, b"state after 30")


def test_a_training_and_a_replica_go_on_from_the_backup_when_the_folder_is_gone(start: Start, tmp_path: Path) -> None:
    folder, backup = tmp_path / "run", tmp_path / "backup"
    both = ("--folder", folder, "--restore-from", backup)
    own = ("--port", 0, "--width", 256, "--step-s", 0.01, "--interval-s", 0.1)
    first = start("train.py", *both, *own)
    until(lambda: first.get("/status")["saved_step"] > 10)
    manager = start("checkpoint_manager.py", "--folder", folder, "--backup", backup)
    assert manager.process.wait(60) == 0, manager.text()
    first.end(signal.SIGKILL)
    copied = (newest(Folder(backup)) or (-1,))[0]
    shutil.rmtree(folder)
    replica = start("inference.py", *both, "--port", 0, "--again-s", 0.05)
    assert until(lambda: replica.get("/readyz")["step"]) == copied
    second = start("train.py", *both, *own)
    assert until(lambda: second.get("/status").get("restored_step")) == copied
    until(lambda: second.get("/status")["saved_step"] > copied)
    resumed = model(256)
    found = Folder(folder).restore(resumed.load)
    assert found is not None
    assert found.step > copied
