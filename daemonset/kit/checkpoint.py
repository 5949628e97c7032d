"""Checkpoints in a shared folder: whole or not there at all, and never by two writers. Python alone; copy it.

The folder is a chain of numbered files, ``checkpoint-0000000042``. A writer adds the next number, and only if the one
before was its own. To become the writer is to add a number too: an empty file, the claim. The file system lets one
process alone create a name (open with O_EXCL, link), so a pod that goes on training on a hung node finds its next
number taken, and stops. No check is apart from its write, so there is no moment in which both could win, and no clock
is asked.

One case is left: a writer that slept until its next number was used and pruned can create that name again. It sees the
newer numbers right after, and stops. Its file lies below all checkpoints kept: restored only if each of them is broken.

Saving, verifying and copying hold a few megabytes, however large a checkpoint is: it is hashed while it is written.

A storage that fails for a moment (EIO, ESTALE, EACCES) is an OSError: try again. It never looks like a newer writer,
nor like a folder without checkpoints.

It takes a file system with hard links on which all see one order of creations: any local one, NFS, CephFS, Lustre.
Not SMB (Azure Files), nor buckets behind FUSE (gcsfuse, s3fs): ``save`` fails there at the first step, and says so.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

UNFIT = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)  # what a storage without hard links says
_NAME = re.compile(r"checkpoint-([0-9]{10})")
_HEAD = re.compile(
    rb"gpu-kit-checkpoint-2 step=([0-9]{20}) bytes=([0-9]{20}) writer=([0-9a-f]{32}) sha256=([0-9a-f]{64})\n"
)
_JUMP = 1_000_000  # beyond all that a writer can have added since its last copy
_AGAIN_S = 1.0
_log = logging.getLogger("checkpoint")


class FencedError(Exception):
    """A newer writer has taken the folder. Stop: what this one computes is lost, and must not be written."""


class BrokenError(Exception):
    """There are checkpoints, and none of them is whole."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A whole one."""

    number: int
    step: int
    file: Path


class Folder:
    """The checkpoints of one training run. Anyone may restore; ``claim`` comes before ``save``.

    ``backup`` is the folder of the copies that the manager makes: restored from wherever it holds a newer whole one.
    """

    def __init__(self, path: Path, keep: int = 3, backup: Path | None = None) -> None:
        if keep < 1:
            raise ValueError("keep must be 1 or more")
        self.path, self._keep, self._mine, self._writer = path, keep, 0, uuid.uuid4().hex
        self._backup = None if backup is None else Folder(backup)

    def restore(self, load: Callable[[BinaryIO], object] = lambda _: None, patience_s: float = 60) -> Checkpoint | None:
        """Hand the newest whole one to ``load``, as a file that stands at the first byte of what was saved.

        What is torn, empty, altered or a BrokenError of ``load`` is passed over; what can't be read, only after
        ``patience_s``. None if there is no checkpoint at all. Whoever begins anew on None loses nothing: where storage
        fails it is an OSError, and a BrokenError where there are some and none is whole.
        """
        until = time.monotonic() + patience_s
        while True:
            impatient = time.monotonic() >= until
            try:
                return self._restore(load, impatient)
            except OSError as error:
                if impatient:
                    raise
                _log.warning("can't read %s now, trying again: %s", self.path, error)
            time.sleep(_AGAIN_S)

    def _restore(self, load: Callable[[BinaryIO], object], impatient: bool) -> Checkpoint | None:
        trouble: OSError | None = None
        there = [(number, self) for number in self.numbers()]
        try:
            there += [(number, self._backup) for number in self._backup.numbers()] if self._backup else []
        except OSError as error:  # no harm, as long as our own are whole
            trouble = error
        broken = 0
        for number, folder in sorted(there, key=lambda one: -one[0]):  # of two with one number, ours
            try:
                with folder.file(number).open("rb") as file:
                    step = verified(file)
                    if step is not None:
                        file.seek(HEAD_BYTES)
                        load(file)
                        return Checkpoint(number, step, folder.file(number))
                    broken += not folder.is_claim(number)
            except BrokenError as error:
                _log.error("passed over: %s", error)
                broken += 1
            except OSError as error:  # storage that fails for a moment or for good, or the writer pruned it: list again
                if not impatient:
                    raise
                _log.error("passed over: %s", error)
                trouble = error
        if trouble:
            raise trouble
        if broken:
            raise BrokenError(f"{self.path}: none of {broken} checkpoints is whole; to begin anew, move them away")
        return None

    def claim(self) -> None:
        """Become the only writer: whoever wrote before can add no file any more. Restore after this, not before.

        Where the folder was lost and its backup is ahead, numbers jump: the old writer's next one is below the claim.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self.sweep()
        number = max(self.numbers(), default=0)
        try:
            copied = max(self._backup.numbers(), default=0) if self._backup else 0
        except OSError:
            if not number:
                raise
            copied = 0
        if copied > number:
            number = copied + _JUMP
        self._mine = 0
        while self._mine != max(self.numbers(), default=-1):  # an NFS client may list yesterday's files until it writes
            number = max(number, *self.numbers(), 0) + 1
            with contextlib.suppress(FileExistsError):
                os.close(os.open(self.file(number), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
                self._mine = number
        _sync(self.path)

    def save(self, step: int, dump: Callable[[BinaryIO], object]) -> None:
        """Add what ``dump`` writes, forget the oldest. FencedError; an OSError (disk full) leaves the older ones alone.

        ``dump`` gets a file that can be written to and not sought in.
        """
        self.check()
        self.path.mkdir(exist_ok=True)  # whoever removed it has not removed what we hold
        self.sweep(self._writer)
        self.add(self._mine + 1, step, dump)
        self._mine += 1
        self.check()
        self.prune()

    def check(self) -> None:
        """FencedError if another has become the writer; cheap enough for every step."""
        if not self._mine:
            raise RuntimeError("claim the folder before you save")
        newest = max(self.numbers(), default=0)
        while self._mine < newest and self._wrote(self._mine + 1):  # a save that storage called failed, and was not
            self._mine += 1
        if newest > self._mine:
            raise FencedError(f"another writer has taken {self.path}")

    def add(self, number: int, step: int, dump: Callable[[BinaryIO], object]) -> None:
        """What ``save`` does, whoever the writer is."""
        self._put(number, lambda file: _write(file, step, self._writer, dump))

    def copy(self, checkpoint: Checkpoint) -> None:
        """Add another folder's, under its number."""
        with checkpoint.file.open("rb") as source:
            self._put(checkpoint.number, lambda file: shutil.copyfileobj(source, file, 1 << 20))

    def _put(self, number: int, fill: Callable[[BinaryIO], object]) -> None:
        """Write beside, force it to the disk, then give it its name: a name always stands for a whole file."""
        temporary = self.path / f".saving-{self._writer}-{number}-{uuid.uuid4().hex}"
        try:
            with temporary.open("xb") as file:
                fill(file)
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
        except FileExistsError:
            # Over NFS a link whose answer was lost is sent again, and then finds its own work (link(2), BUGS).
            if temporary.stat().st_nlink != 2:
                raise FencedError(f"another writer has taken {self.path}") from None
        except OSError as error:
            if error.errno in UNFIT:
                why = f"{self.path}: this storage has no hard links; use NFS, CephFS or Lustre"
                raise OSError(error.errno, why) from error
            raise

    def prune(self) -> None:
        """Forget what is older than the last ``keep`` whole ones. Never the newest file, and never by age."""
        whole = (number for number in self.numbers() if is_whole(self.file(number)))
        kept = [number for number, _ in zip(whole, range(self._keep), strict=False)]
        for number in self.numbers():
            if len(kept) == self._keep and number < kept[-1]:
                with _told_only("could not remove"):
                    self.file(number).unlink(missing_ok=True)

    def sweep(self, writer: str = "") -> None:
        """Remove what a writer left that was killed while saving; one that is still at it is stopped by this."""
        for left in self.path.glob(f".saving-{writer}*"):
            with _told_only("could not remove"):
                left.unlink(missing_ok=True)

    def numbers(self) -> list[int]:
        """Newest first; none where the folder is not there."""
        try:
            names = os.listdir(self.path)
        except FileNotFoundError:
            return []
        return sorted((int(found[1]) for found in map(_NAME.fullmatch, names) if found), reverse=True)

    def file(self, number: int) -> Path:
        return self.path / f"checkpoint-{number:010d}"

    def is_claim(self, number: int) -> bool:
        """An empty file: a writer that has not saved yet, which is no damage. So is one that was pruned since."""
        try:
            return self.file(number).stat().st_size == 0
        except FileNotFoundError:
            return True

    def _wrote(self, number: int) -> bool:
        try:
            with self.file(number).open("rb") as file:
                head = _HEAD.fullmatch(file.read(HEAD_BYTES))
        except FileNotFoundError:
            return False
        return head is not None and head[3].decode() == self._writer


class _Hashed(io.RawIOBase):
    """A file that hashes, in a thread beside, what is written to it."""

    def __init__(self, file: BinaryIO, pool: ThreadPoolExecutor) -> None:
        self._file, self._pool = file, pool
        self.digest, self.bytes = hashlib.sha256(), 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        hashed = self._pool.submit(self.digest.update, data)
        self._file.write(data)
        hashed.result()
        size = memoryview(data).nbytes
        self.bytes += size
        return size


def _write(file: BinaryIO, step: int, writer: str, dump: Callable[[BinaryIO], object]) -> None:
    """The head comes last: the size and the hash are known when all is written."""
    file.write(bytes(HEAD_BYTES))
    with ThreadPoolExecutor(1) as pool, _Hashed(file, pool) as hashed:
        with io.BufferedWriter(hashed, 1 << 20) as buffered:
            dump(buffered)
        head = _head(step, hashed.bytes, writer, hashed.digest)
    file.seek(0)
    file.write(head)


def verified(file: BufferedReader) -> int | None:
    """The step, if the file is what was saved, to the last bit."""
    head = _HEAD.fullmatch(file.read(HEAD_BYTES))
    if not head or os.fstat(file.fileno()).st_size != HEAD_BYTES + int(head[2]):
        return None
    step, size, writer = int(head[1]), int(head[2]), head[3].decode()
    return step if _head(step, size, writer, hashlib.file_digest(file, "sha256")) == head[0] else None


def is_whole(path: Path) -> bool:
    """By head and length alone: quick, for counting. Bits that flipped since show in ``verified``."""
    try:
        with path.open("rb") as file:
            head = _HEAD.fullmatch(file.read(HEAD_BYTES))
            return head is not None and os.fstat(file.fileno()).st_size == HEAD_BYTES + int(head[2])
    except OSError:
        return False


def _head(step: int, size: int, writer: str, digest: hashlib._Hash) -> bytes:
    """The hash is of what was saved, and then of what stands before it in the head."""
    said = f"step={step:020d} bytes={size:020d} writer={writer}"
    digest.update(said.encode())
    return f"gpu-kit-checkpoint-2 {said} sha256={digest.hexdigest()}\n".encode()


@contextlib.contextmanager
def _told_only(what: str) -> Iterator[None]:
    """What may as well be done the next time."""
    try:
        yield
    except OSError as error:
        _log.warning("%s: %s", what, error)


def _sync(folder: Path) -> None:
    """A new name is on the disk only once its folder is (fsync(2))."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


HEAD_BYTES = len(_head(0, 0, "0" * 32, hashlib.sha256()))
