"""A checkpoint that is a directory, under the rules of checkpoint.py: for many ranks, or a library that writes folders.

The directory lies beside the numbered files. What makes it a checkpoint is one of them, the mark: it names the
directory, and each of its files with size and SHA-256. So it is there whole or not at all, in the one order that all
writers share, and a directory that no mark names is left over from a save that did not end. Python alone; copy it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from checkpoint import HEAD_BYTES, BrokenError, Checkpoint, Folder

SHARDS = "shards-"  # how our own directories begin; those of a library's are its own to remove
_MARK = b"gpu-kit-directory-1\n"
_NAME = re.compile(r"[\w-][\w.-]*")  # one step below the folder, and nowhere else
_FILE = re.compile(r"(?:[\w.-]+/)*[\w.-]+")

Files = dict[str, tuple[int, str]]  # by path in the directory: bytes, SHA-256


def files(directory: Path, names: Iterable[str] | None = None) -> Files:
    """Read, and summed up; all that are there, unless some are named. They and the directory are on the disk then."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file()) if names is None else names
    summed = {}
    for path in (directory / name for name in paths):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            summed[str(path.relative_to(directory))] = (file.tell(), digest)
    for folder in {directory, *(directory / name for name in summed)}:
        _sync(folder)
    return summed


def mark(file: BinaryIO, name: str, summed: Files) -> None:
    """What ``Folder.save`` writes for a directory of this name beside it."""
    file.write(_MARK + json.dumps({"directory": name, "files": summed}).encode())


def marked(file: BinaryIO) -> tuple[Path, Files] | None:
    """The directory that a mark names, and its files; None for any other checkpoint, which is left as it stands."""
    begins = file.tell()
    if file.read(len(_MARK)) != _MARK:
        file.seek(begins)
        return None
    said = json.loads(file.read())
    name, summed = said["directory"], {path: (size, digest) for path, (size, digest) in said["files"].items()}
    wrong = [path for path in summed if not _FILE.fullmatch(path) or ".." in path.split("/")]
    if not _NAME.fullmatch(name) or wrong:
        raise BrokenError(f"{file.name}: it names files that are not below it")
    return Path(file.name).parent / name, summed


def check(file: BinaryIO) -> None:
    """For ``Folder.restore``: a directory that is not what its mark says is passed over."""
    if found := marked(file):
        verify(*found)


def verify(directory: Path, summed: Files) -> None:
    """BrokenError if a file is not there, or not the same to the last bit."""
    for name, (size, digest) in summed.items():
        try:
            with (directory / name).open("rb") as file:
                if (
                    os.fstat(file.fileno()).st_size == size
                    and hashlib.file_digest(file, "sha256").hexdigest() == digest
                ):
                    continue
        except (FileNotFoundError, NotADirectoryError):
            pass
        raise BrokenError(f"{directory / name} is not what was saved")


def copy(checkpoint: Checkpoint, backup: Path) -> None:
    """If it is a mark, its directory into the backup. The mark itself is to follow."""
    with checkpoint.file.open("rb") as file:
        file.seek(HEAD_BYTES)
        found = marked(file)
    if found is None:
        return
    source, summed = found
    there = backup / source.name
    shutil.rmtree(there, ignore_errors=True)
    for name in summed:
        (there / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, there / name)
    if files(there, summed) != summed:
        raise BrokenError(f"{there} does not read back as {source} was saved")


def sweep(folder: Folder) -> None:
    """Remove our own directories that no mark names. OSError, and nothing is removed, if a mark can't be read now."""
    named = set()
    for number in folder.numbers():
        with folder.file(number).open("rb") as file:
            file.seek(HEAD_BYTES)
            try:
                found = marked(file)
            except (BrokenError, ValueError, KeyError, TypeError):
                found = None
            named |= {found[0].name} if found else set()
    for directory in folder.path.glob(f"{SHARDS}*"):
        if directory.name not in named:
            shutil.rmtree(directory, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path if path.is_dir() else path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
