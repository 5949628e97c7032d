"""Checkpoints in a shared folder: whole or not there at all, and never by two writers. Python alone; copy it.

The folder is a chain of numbered files, ``checkpoint-0000000042``. A writer adds the next number, and only if the one
before was its own. To become the writer is to add a number too: an empty file, the claim. The file system lets one
process alone create a name (open with O_EXCL, link), so a pod that goes on training on a hung node finds its next
number taken, and stops. No check is apart from its write, so there is no moment in which both could win, and no clock
is asked.

One case is left: a writer that slept until its next number was used and pruned can create that name again. It sees the
newer numbers right after, and stops. Its file lies below all checkpoints kept: restored only if each of them is broken.

It takes a file system with hard links on which all see one order of creations: any local one, NFS, CephFS, Lustre.
Not SMB (Azure Files), nor buckets behind FUSE (gcsfuse, s3fs): ``save`` fails there at the first step, and says so.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_NAME = re.compile(r"checkpoint-([0-9]{10})")
_HEAD = re.compile(rb"gpu-kit-checkpoint-1 step=([0-9]{20}) bytes=([0-9]{20}) sha256=([0-9a-f]{64})\n")


class FencedError(Exception):
    """A newer writer has taken the folder. Stop: what this one computes is lost, and must not be written."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state after a step, as it was saved."""

    number: int
    step: int
    payload: bytes


class Folder:
    """The checkpoints of one training run. Anyone may restore; ``claim`` comes before ``save``."""

    def __init__(self, path: Path, keep: int = 3) -> None:
        if keep < 1:
            raise ValueError("keep must be 1 or more")
        self.path, self._keep, self._mine = path, keep, 0

    def restore(self) -> Checkpoint | None:
        """The newest whole one. What is torn, empty, unreadable or altered is passed over."""
        for _ in range(3):  # the writer may prune a file between our listing and our reading: then list again
            missed = False
            for number in self.numbers():
                try:
                    if found := read(self.file(number)):
                        return Checkpoint(number, *found)
                except FileNotFoundError:
                    missed = True
                except OSError:  # a bad block, or a server that lost the file
                    continue
            if not missed:
                break
        return None

    def claim(self) -> None:
        """Become the only writer: whoever wrote before can add no file any more. Restore after this, not before."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.sweep()
        number = max(self.numbers(), default=0)
        while self._mine != max(self.numbers(), default=-1):  # an NFS client may list yesterday's files until it writes
            number = max(number, *self.numbers(), 0) + 1
            with contextlib.suppress(FileExistsError):
                os.close(os.open(self.file(number), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
                self._mine = number
        _sync(self.path)

    def save(self, step: int, payload: bytes) -> None:
        """Add a checkpoint, forget the oldest. FencedError; an OSError (disk full) leaves the older ones alone."""
        self.check()
        self.add(self._mine + 1, step, payload)
        self._mine += 1
        self.check()
        self.prune()

    def check(self) -> None:
        """FencedError if another has become the writer; cheap enough for every step."""
        if not self._mine:
            raise RuntimeError("claim the folder before you save")
        if max(self.numbers(), default=0) > self._mine:
            raise FencedError(f"another writer has taken {self.path}")

    def add(self, number: int, step: int, payload: bytes) -> None:
        """Write beside, force it to the disk, then give it its name: a name always stands for a whole file."""
        temporary = self.path / f".saving-{number}-{uuid.uuid4().hex}"
        try:
            with temporary.open("xb") as file:
                file.write(_head(step, payload))
                file.write(payload)
                file.flush()
                os.fsync(file.fileno())
            self._name(temporary, number)
        finally:
            temporary.unlink(missing_ok=True)
        _sync(self.path)

    def _name(self, temporary: Path, number: int) -> None:
        """A rename would replace what is there; a link refuses."""
        try:
            os.link(temporary, self.file(number))
        except FileNotFoundError:  # the newer writer swept it
            raise FencedError(f"another writer has taken {self.path}") from None
        except FileExistsError:
            # Over NFS a link whose answer was lost is sent again, and then finds its own work (link(2), BUGS).
            if temporary.stat().st_nlink != 2:
                raise FencedError(f"another writer has taken {self.path}") from None
        except OSError as error:
            if error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
                raise OSError(
                    error.errno, f"{self.path}: this storage has no hard links; use NFS, CephFS or Lustre"
                ) from error
            raise

    def prune(self) -> None:
        """Forget what is older than the last ``keep`` whole ones. Never the newest file, and never by age."""
        whole = (number for number in self.numbers() if is_whole(self.file(number)))
        kept = [number for number, _ in zip(whole, range(self._keep), strict=False)]
        for number in self.numbers():
            if len(kept) == self._keep and number < kept[-1]:
                self.file(number).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove what a writer left that was killed while saving; one that is still at it is stopped by this."""
        for left in self.path.glob(".saving-*"):
            left.unlink(missing_ok=True)

    def numbers(self) -> list[int]:
        """Newest first."""
        return sorted((int(found[1]) for found in map(_NAME.fullmatch, self._names()) if found), reverse=True)

    def file(self, number: int) -> Path:
        return self.path / f"checkpoint-{number:010d}"

    def _names(self) -> Iterator[str]:
        if self.path.is_dir():
            yield from os.listdir(self.path)


def read(path: Path) -> tuple[int, bytes] | None:
    """Step and payload, if the file is what was saved, to the last bit."""
    with path.open("rb") as file:
        head, payload = _HEAD.fullmatch(file.read(_HEAD_BYTES)), file.read()
    if not head or len(payload) != int(head[2]):
        return None
    step = int(head[1])
    return (step, payload) if _digest(step, payload) == head[3].decode() else None


def is_whole(path: Path) -> bool:
    """By head and length alone: quick, for counting. Bits that flipped since show in ``read``."""
    try:
        with path.open("rb") as file:
            head = _HEAD.fullmatch(file.read(_HEAD_BYTES))
            return head is not None and os.fstat(file.fileno()).st_size == _HEAD_BYTES + int(head[2])
    except OSError:
        return False


def _head(step: int, payload: bytes) -> bytes:
    sizes = b"step=%020d bytes=%020d" % (step, len(payload))
    return b"gpu-kit-checkpoint-1 %s sha256=%s\n" % (sizes, _digest(step, payload).encode())


def _digest(step: int, payload: bytes) -> str:
    digest = hashlib.sha256(b"%d %d\n" % (step, len(payload)))
    digest.update(payload)
    return digest.hexdigest()


def _sync(folder: Path) -> None:
    """A new name is on the disk only once its folder is (fsync(2))."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_HEAD_BYTES = len(_head(0, b""))
