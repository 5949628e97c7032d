"""A storage that fails for a while (EACCES, EIO, ESTALE) costs that while, is told, and ends nothing."""

from __future__ import annotations

import errno
import signal
import subprocess
from pathlib import Path

import pytest
from checkpoint import Folder

from tests.kit.conftest import Program, Start, newest, save, until
from tests.kit.ill_storage import CODES, Storage


def train(start: Start, storage: Storage, *extra: object) -> Program:
    told = ("--folder", storage.folder, "--interval-s", 0.05, "--width", 16, "--step-s", 0.01, "--port", 0)
    return start("train.py", *told, *extra, environment=storage.environment)


@pytest.mark.parametrize("code", CODES)
def test_a_training_goes_on_while_its_storage_fails_and_says_so(start: Start, storage: Storage, code: int) -> None:
    run = train(start, storage)
    until(lambda: run.get("/status")["saved_step"] > 3)
    storage.fails(code)
    said = until(lambda: run.get("/status").get("trouble"))
    assert f"[Errno {code}]" in said
    at = run.get("/status")
    until(lambda: run.get("/status")["step"] > at["step"] + 100)  # beyond the next look at the fence
    assert run.get("/status")["saved_step"] == at["saved_step"]
    storage.works()
    until(lambda: run.get("/status")["saved_step"] > at["step"])
    until(lambda: "trouble" not in run.get("/status"))
    assert run.end() == 143


@pytest.mark.parametrize("code", CODES)
def test_a_training_that_starts_while_storage_fails_waits_and_never_begins_anew(
    start: Start, storage: Storage, code: int
) -> None:
    (folder := Folder(storage.folder)).claim()
    storage.fails(code)
    run = train(start, storage)
    until(lambda: f"can't take the folder: [Errno {code}]" in run.text())
    storage.works()
    until(lambda: run.get("/status").get("saved_step", 0) > 3)
    run.end()
    assert folder.numbers()


def test_a_checkpoint_that_cannot_be_read_for_a_moment_is_waited_for(tmp_path: Path) -> None:
    """Reading /proc/self/mem at its beginning is an EIO, as a bad block is."""
    (folder := Folder(tmp_path)).claim()
    save(folder, 1, b"older")
    bad = folder.file(folder.numbers()[0] + 1)
    bad.symlink_to("/proc/self/mem")
    with pytest.raises(OSError, match="Input/output error"):
        folder._restore(lambda _: None, impatient=False)
    assert newest(folder) == (1, b"older"), "passed over once patience is over"
    folder.file(folder.numbers()[1]).unlink()
    with pytest.raises(OSError, match="Input/output error"):
        folder.restore(patience_s=0)


def test_a_save_that_was_made_and_called_failed_fences_nobody(start: Start, storage: Storage) -> None:
    """As over NFS, where the answer gets lost and the link stands."""
    run = train(start, storage)
    until(lambda: run.get("/status")["saved_step"] > 3)
    storage.fails(errno.EIO, late=True)
    until(lambda: run.get("/status").get("trouble"))
    at = run.get("/status")["step"]
    storage.works()
    until(lambda: run.get("/status")["saved_step"] > at)
    assert run.process.poll() is None


def test_sigterm_while_storage_fails_waits_for_it_and_loses_no_step(start: Start, storage: Storage) -> None:
    run = train(start, storage)
    until(lambda: run.get("/status")["saved_step"] > 3)
    storage.fails(errno.ESTALE)
    until(lambda: run.get("/status").get("trouble"))
    run.signal(signal.SIGTERM)
    until(lambda: "can't save" in run.text())
    ended_at = run.get("/status")["step"]
    with pytest.raises(subprocess.TimeoutExpired):
        run.process.wait(0.5)
    storage.works()
    assert run.process.wait(60) == 143
    assert (newest(Folder(storage.folder)) or (-1,))[0] >= ended_at


def test_a_storage_without_hard_links_ends_a_training_at_its_first_step(start: Start, storage: Storage) -> None:
    storage.fails(errno.EOPNOTSUPP, late=True)
    run = train(start, storage)
    assert run.process.wait(60) == 1
    assert "no hard links" in run.text()


@pytest.mark.parametrize("code", CODES)
def test_a_replica_that_cannot_read_its_storage_tries_on_and_says_so(start: Start, storage: Storage, code: int) -> None:
    storage.fails(code)
    replica = start(
        "inference.py", "--folder", storage.folder, "--port", 0, "--again-s", 0.05, environment=storage.environment
    )
    until(lambda: "can't read" in replica.text())
    assert replica.request("GET", "/healthz")[0] == 200
    assert replica.request("GET", "/readyz")[0] == 503
    storage.works()
    until(lambda: "no checkpoint in" in replica.get("/readyz")["waits"])
