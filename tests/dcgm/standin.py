"""The stand-in engine for tests: NVIDIA's bindings, a library compiled for them, and a file that says what it answers.

Every test runs with the bindings of DCGM 3 that PyPI's triton-model-analyzer carries (their imports are made flat again
in a cache outside the tree). Those of DCGM 4 are on no index: where $DCGM_BINDINGS names them, every test runs with
them as well. CI has none, so what only they have (struct versions of 4.x, diagnosis by test instead of by GPU) runs on
developers' machines alone; and no test runs DCGM's own library or engine, except where $DCGM_ADDRESS names one.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.cache import made_once
from tests.compiler import shared_library
from tests.watched import Watched

HERE = Path(__file__).parent
_THREE = "triton-model-analyzer==1.58.0"
_PACKAGE = "model_analyzer/monitor/dcgm/"
FOUR = os.environ.get("DCGM_BINDINGS")
GENERATIONS = ["3", *(["4"] if FOUR else [])]
_GPUS = "gpu 0 00000000:1B:00.0 GPU-a\ngpu 1 00000000:43:00.0 GPU-b\n"
# What a healthy GPU answers: a number for each field that the tests look at.
_WELL = "".join(
    f"value 1 {gpu} {field} i {value}\n"
    for gpu in (0, 1)
    for field, value in ((150, 44), (311, 0), (395, 0), (1523, 0))
)


def bindings(generation: str) -> Path:
    """The folder with pydcgm.py."""
    if generation == "4":
        return Path(str(FOUR))
    return made_once("dcgm-bindings-3", _fetch)


def _fetch(new: Path) -> None:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check", _THREE]
    subprocess.run([*pip, "--dest", str(new)], check=True)
    with zipfile.ZipFile(next(new.glob("*.whl"))) as wheel:
        for name in wheel.namelist():
            if name.startswith(_PACKAGE) and name.endswith(".py") and name.count("/") == _PACKAGE.count("/"):
                text = wheel.read(name).decode().replace(_PACKAGE.replace("/", "."), "")
                (new / Path(name).name).write_text(text)


def library(folder: Path, where: Path) -> Path:
    """The folder with a libdcgm.so.4 whose structures are those of these bindings."""
    where.mkdir(parents=True, exist_ok=True)
    layout = subprocess.run(
        [sys.executable, str(HERE / "layout.py")],
        env={**os.environ, "PYTHONPATH": str(folder)},
        check=True,
        capture_output=True,
        text=True,
    )
    (where / "layout.h").write_text(layout.stdout)
    shared_library(where / "libdcgm.so.4", HERE / "standin.c", options=[f"-I{where}"])
    (where / "libdcgm.so.3").symlink_to("libdcgm.so.4")  # as bindings of 3.3 look for it
    return where


class Engine:
    """An engine that answers as its file says, and a port at which somebody listens."""

    def __init__(self, folder: Path, bindings: Path, library: Path) -> None:
        self.bindings, self.library, self.file = bindings, library, folder / "engine"
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen()
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.answers()

    def answers(self, more: str = "", gpus: str = _GPUS, values: str = _WELL) -> None:
        """From now on; swapped whole, for it may be read at any time."""
        new = self.file.with_suffix(".new")
        new.write_bytes((gpus + values + more).encode(errors="surrogateescape"))
        new.rename(self.file)

    def calls(self) -> list[str]:
        path = Path(f"{self.file}.calls")
        return path.read_text().splitlines() if path.exists() else []

    def stops_listening(self) -> None:
        self._listener.close()

    def environment(self, **more: str) -> dict[str, str]:
        return {**os.environ, "DCGM_STANDIN": str(self.file), **more}

    def options(self, address: str | None = None) -> list[str]:
        return ["--address", address or self.address, "--bindings", str(self.bindings), "--library", str(self.library)]

    @contextmanager
    def source(self, *options: str, address: str | None = None, **environment: str) -> Iterator[Watched]:
        """The real source process on this engine."""
        command = [sys.executable, "-W", "error", "-m", "agent.sources.dcgm", "--poll-s", "0.1", "--health-s", "0.1"]
        with subprocess.Popen(
            [*command, *self.options(address), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.environment(**environment),
        ) as process:
            try:
                yield Watched(process)
            finally:
                process.kill()


def main() -> int:
    """``python -m tests.dcgm.standin FOLDER``: bindings and library, for trying things by hand."""
    folder = Path(sys.argv[1])
    found = bindings(GENERATIONS[-1])
    print(json.dumps({"bindings": str(found), "library": str(library(found, folder / "library"))}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
