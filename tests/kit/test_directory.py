"""A checkpoint that is a directory is there whole or not at all, is copied whole, and goes when its mark does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import directory
import pytest
from checkpoint import HEAD_BYTES, BrokenError, Folder

from tests.kit.conftest import KIT, save


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    made = Folder(tmp_path / "run", keep=2)
    made.claim()
    for step in (1, 2):
        seal(made, step)
    return made


def seal(folder: Folder, step: int) -> Path:
    shards = folder.path / f"{directory.SHARDS}{step}"
    (shards / "below").mkdir(parents=True)
    (shards / "one").write_bytes(b"1" * step)
    (shards / "below" / "two").write_bytes(b"2" * step)
    summed = directory.files(shards)
    assert set(summed) == {"one", "below/two"}
    folder.save(step, lambda file: directory.mark(file, shards.name, summed))
    return shards


def newest(folder: Folder) -> int | None:
    found = folder.restore(directory.check, patience_s=0)
    return found.step if found else None


def truncated(shards: Path) -> None:
    os.truncate(shards / "one", 0)


def altered(shards: Path) -> None:
    (shards / "below" / "two").write_bytes(b"22"[:1] + b"?")


def without_a_file(shards: Path) -> None:
    (shards / "one").unlink()


@pytest.mark.parametrize("damage", [truncated, altered, without_a_file, shutil.rmtree])
def test_a_directory_that_is_not_what_its_mark_says_is_passed_over(
    folder: Folder, damage: Callable[[Path], None]
) -> None:
    assert newest(folder) == 2
    damage(folder.path / f"{directory.SHARDS}2")
    assert newest(folder) == 1


def test_directories_without_a_mark_go_and_others_stay(folder: Folder) -> None:
    (folder.path / f"{directory.SHARDS}left-over").mkdir()
    (folder.path / "of-somebody").mkdir()
    seal(folder, 3)
    directory.sweep(folder)
    left = sorted(path.name for path in folder.path.iterdir() if path.is_dir())
    assert left == ["of-somebody", f"{directory.SHARDS}2", f"{directory.SHARDS}3"]
    assert newest(folder) == 3


@pytest.mark.parametrize("said", [
    {"directory": "../elsewhere", "files": {}},
    {"directory": "shards-2", "files": {"../../secret": [1, "0" * 64]}},
    {"directory": "shards-2", "files": {"/etc/passwd": [1, "0" * 64]}},
])  # fmt: skip
def test_a_mark_reaches_nothing_outside_of_its_directory(folder: Folder, said: Any) -> None:
    folder.save(3, lambda file: file.write(b"gpu-kit-directory-1\n" + json.dumps(said).encode()))
    with folder.file(folder.numbers()[0]).open("rb") as file:
        file.seek(HEAD_BYTES)
        with pytest.raises(BrokenError, match="not below it"):
            directory.check(file)
    assert newest(folder) == 2


@pytest.mark.parametrize("content", [b"", b"short", b"an ordinary one " * 100])
def test_what_is_no_mark_is_left_as_it_stands(folder: Folder, content: bytes) -> None:
    save(folder, 9, content)
    read: list[bytes] = []
    folder.restore(lambda file: read.append(b"" if directory.marked(file) else file.read()))
    assert read == [content]


def test_the_manager_copies_directories_with_their_marks_and_the_way_back_finds_them(folder: Folder) -> None:
    backup = folder.path.with_name("backup")
    program = [sys.executable, str(KIT / "checkpoint_manager.py"), f"--folder={folder.path}", f"--backup={backup}"]
    for step in (3, 4):
        seal(folder, step)
        done = subprocess.run([*program, "--keep=1"], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert [path.name for path in backup.glob(f"{directory.SHARDS}*")] == [f"{directory.SHARDS}4"]
    shutil.rmtree(folder.path)
    assert newest(Folder(folder.path, backup=backup)) == 4
    truncated(backup / f"{directory.SHARDS}4")
    with pytest.raises(BrokenError):
        newest(Folder(folder.path, backup=backup))


def test_twenty_kills_in_the_midst_of_saving_directories_break_no_restore() -> None:
    program = [sys.executable, "-m", "tests.kit.kills", "--kills=20", "--program=tests.kit.directories"]
    done = subprocess.run(program, cwd=KIT.parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "20 kills -9 over 1 rank(s)" in done.stdout
