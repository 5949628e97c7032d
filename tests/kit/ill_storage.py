"""A run's folder on a storage that fails when it is told to: ``ill_storage.c``, preloaded."""

from __future__ import annotations

import errno
from pathlib import Path

from tests.compiler import shared_library

CODES = (errno.EACCES, errno.EIO, errno.ESTALE)


class Storage:
    """Its folder, and the environment of a program that is to meet it."""

    def __init__(self, path: Path, library: Path) -> None:
        self.folder, self._says = path / "run", path / "says"
        self._says.touch()
        self.environment = {
            "LD_PRELOAD": str(library),
            "ILL_STORAGE": str(self.folder),
            "ILL_STORAGE_SAYS": str(self._says),
        }

    def fails(self, code: int, late: bool = False) -> None:
        self._says.write_text(f"{'late ' * late}{code}")

    def works(self) -> None:
        self._says.write_text("")


def built(made: Path) -> Path:
    """The library to preload."""
    shared_library(made, Path(__file__).with_name("ill_storage.c"), options=["-ldl"])
    return made
