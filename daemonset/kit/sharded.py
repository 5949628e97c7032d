"""Checkpoints of a training of many ranks: each writes its shards, all at the same step, and one mark makes them whole.

The shards are PyTorch's (torch.distributed.checkpoint, asynchronously; another number of ranks may restore them), the
folder is checkpoint.py's, the mark is directory.py's. Rank 0 alone adds numbers to the folder; what it meets there,
a newer writer or a storage that fails, all ranks learn as if each had met it.

Call every method on all ranks in the same order: each speaks with the others.
"""

from __future__ import annotations

import contextlib
import errno
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from checkpoint import BrokenError, FencedError, Folder
from directory import SHARDS, Files, files, mark, marked, sweep, verify
from torch.distributed.checkpoint.api import CheckpointException

_T = TypeVar("_T")


class Gang:
    """All ranks, as one. What they tell each other is a few bytes, by a group of its own on the CPU."""

    def __init__(self, patience_s: float = 600) -> None:
        """``patience_s``: how long the slowest rank may take for a step. One that was killed shows at once."""
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=patience_s))

    def any(self, *words: bool) -> list[bool]:
        """For each word whether it is true on any rank. A training asks this once a step: so one that was asked to
        save tells its gang, and all save at the same step."""
        told = torch.tensor(words, dtype=torch.int32)
        dist.all_reduce(told, dist.ReduceOp.MAX, group=self._group)
        return [bool(word) for word in told]

    def first(self, act: Callable[[], _T]) -> _T:
        """What rank 0 gets by ``act``; what it raises, every rank raises."""
        said: list[Any] = [None]
        if self.rank == 0:
            try:
                said = [act()]
            except (OSError, BrokenError, FencedError, ValueError) as error:
                said = [error]
        dist.broadcast_object_list(said, src=0, group=self._group)
        if isinstance(said[0], Exception):
            raise said[0]
        return said[0]  # type: ignore[no-any-return]

    def each(self, word: object) -> list[Any]:
        """Every rank's word."""
        words: list[Any] = [None] * self.size
        dist.all_gather_object(words, word, group=self._group)
        return words


class Shards:
    """The checkpoints of one training run of many ranks."""

    def __init__(self, gang: Gang, folder: Folder) -> None:
        self._gang, self._folder = gang, folder
        self._group = dist.new_group(backend="gloo")  # for what is written beside the training
        self._pool = ThreadPoolExecutor(1)
        self._saving: _Saving | None = None

    def claim(self) -> None:
        """Become the only writer. Restore after this."""
        self._gang.first(self._claim)

    def _claim(self) -> None:
        self._folder.claim()
        sweep(self._folder)

    def check(self) -> None:
        """FencedError on all ranks if another has become the writer."""
        self._gang.first(self._folder.check)

    def restore(self, state: dict[str, Any]) -> int | None:
        """Fill ``state`` from the newest checkpoint that is whole, and tell its step. All ranks verify a part each.

        OSError on all ranks if storage fails one of them, ValueError if the checkpoint is of another model.
        """
        found = self._gang.first(self._find)
        while isinstance(found, _Verify):  # on ranks other than 0: what rank 0 comes upon in its search
            with contextlib.suppress(BrokenError, OSError):
                self._verify(found)
            found = self._gang.first(self._find)
        if found is None:
            return None
        step, path = found
        try:
            dcp.load(state, storage_reader=dcp.FileSystemReader(path), process_group=self._group)
        except CheckpointException as error:  # on all ranks, whichever met it
            met = [one for one, _ in error.failures.values()]
            storage = [one for one in met if isinstance(one, OSError)]
            if storage:
                raise OSError(errno.EIO, f"{path} can't be read: {storage[0]}") from error
            raise ValueError(f"the checkpoint is of another model ({met[0]!r:.300})") from error
        return step

    def _find(self) -> tuple[int, str] | None:
        """Rank 0's search."""
        whole = ""

        def load(file: BinaryIO) -> None:
            nonlocal whole
            found = marked(file)
            if found is None:
                raise BrokenError(f"{file.name} is no checkpoint of many ranks")
            directory, summed = found
            self._verify(self._gang.first(lambda: _Verify(directory, summed)))
            whole = str(directory)

        checkpoint = self._folder.restore(load)
        return (checkpoint.step, whole) if checkpoint else None

    def _verify(self, what: _Verify) -> None:
        names = sorted(what.files)[self._gang.rank :: self._gang.size]
        word: Exception | None = None
        try:
            verify(what.directory, {name: what.files[name] for name in names})
        except (BrokenError, OSError) as error:
            word = error
        for wrong in self._gang.each(word):
            if wrong:
                raise wrong

    @property
    def saving(self) -> bool:
        """Whether a save has begun that is no checkpoint yet; the same on all ranks."""
        return self._saving is not None

    @property
    def busy(self) -> bool:
        """Whether this rank still writes."""
        return self._saving is not None and not self._saving.written.done()

    def begin(self, step: int, state: dict[str, Any]) -> None:
        """Copy the state aside, write it beside the training. ``commit`` once no rank is busy, and before the next."""
        path = self._folder.path / self._gang.first(self._name)
        writer = dcp.FileSystemWriter(path, sync_files=False)  # ``files`` does it, before it sums them up
        saved = dcp.async_save(state, storage_writer=writer, process_group=self._group)
        self._saving = _Saving(step, path, self._pool.submit(self._written, saved, path))

    def _name(self) -> str:
        self._folder.check()
        name = f"{SHARDS}{uuid.uuid4().hex}"
        (self._folder.path / name).mkdir()
        return name

    def _written(self, saved: Future[Any], path: Path) -> Files:
        saved.result()
        rank = self._gang.rank
        names = [file.name for file in path.glob(f"__{rank}_*")]
        return files(path, [*names, ".metadata"] if rank == 0 else names)

    def commit(self) -> None:
        """What all ranks have written becomes a checkpoint. FencedError, OSError on all ranks if on one."""
        if self._saving is None:
            raise RuntimeError("begin a save before you commit it")
        saving, self._saving = self._saving, None
        try:
            word: Any = saving.written.result()
        except (Exception, CheckpointException) as error:  # noqa: BLE001 - whatever it was, all ranks must hear of it
            word = f"rank {self._gang.rank} could not write: {error!r}"
        words = self._gang.each(word)
        if wrong := [word for word in words if isinstance(word, str)]:
            raise OSError(errno.EIO, wrong[0][:300])
        summed = {name: told for word in words for name, told in word.items()}
        self._gang.first(lambda: self._seal(saving, summed))

    def _seal(self, saving: _Saving, summed: Files) -> None:
        self._folder.save(saving.step, lambda file: mark(file, saving.path.name, summed))
        sweep(self._folder)


@dataclass(frozen=True)
class _Verify:
    """An order of rank 0 to all."""

    directory: Path
    files: Files


@dataclass(frozen=True)
class _Saving:
    step: int
    path: Path
    written: Future[Files]
