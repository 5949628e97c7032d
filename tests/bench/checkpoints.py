"""``python -m tests.bench.checkpoints``: memory and time of saving, verifying, copying and restoring, by size.

Each in a process of its own: the most memory that it held beyond what it held before, the most in all, and the time
beside that of the same bytes written and forced to the disk, or read, without a checkpoint. The model is NumPy's, or
PyTorch's where the Python that runs it has that. ``--stream`` leaves it out, and
hands over the same bytes again and again: the kit's own share.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, BinaryIO

KIT = Path(__file__).parents[2] / "daemonset" / "kit"
WHAT = ("write", "save", "read", "verify", "copy", "restore")
_BYTES_A_COLUMN, _BYTES_A_COLUMN_OF_TORCH = 72, 80  # 9 weights and 9 velocities; PyTorch has a bias as well
_PIECE = 64 << 20


def held(what: str = "VmRSS") -> int:
    """Resident memory, in bytes: now, or the most of it (VmHWM) since ``forget``."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(what))) << 10


def forget() -> None:
    """What was held at most until now (proc_pid_clear_refs(5))."""
    Path("/proc/self/clear_refs").write_text("5")


def one(what: str, folder: Path, size: int, stream: bool) -> None:
    """Do it, and print seconds and the bytes held at most: beyond those before, and in all."""
    sys.path.insert(0, str(KIT))
    from checkpoint import Folder

    runs, piece = Folder(folder / "run"), os.urandom(_PIECE)

    def pieces(file: BinaryIO) -> None:
        for _ in range(size // _PIECE):
            file.write(piece)

    def read(file: Any) -> None:
        while file.readinto(buffer):
            pass

    buffer = bytearray(1 << 20)
    learner = None if stream or what not in ("save", "restore") else trained(size)
    forget()
    before, began = held(), time.monotonic()
    if what == "write":
        with (folder / "plain").open("wb") as file:
            pieces(file)
            file.flush()
            os.fsync(file.fileno())
    elif what == "read":
        with (folder / "plain").open("rb") as plain:
            read(plain)
        (folder / "plain").unlink()
    elif what == "save":
        runs.claim()
        runs.save(1, pieces if learner is None else learner.dump)
    elif what == "copy":
        (backup := Folder(folder / "backup")).path.mkdir()
        found = runs.restore()
        assert found is not None
        backup.copy(found)
    else:
        assert runs.restore(read if learner is None and what == "restore" else (learner.load if learner else skip))
    seconds = time.monotonic() - began
    print(seconds, held("VmHWM") - before, held("VmHWM"))


def trained(size: int) -> Any:
    """A model whose checkpoint has that many bytes, with the momenta of one that has trained."""
    from model import NumpyModel, TorchModel

    try:
        import torch
    except ImportError:
        learner = NumpyModel(size // _BYTES_A_COLUMN)
        for velocities in learner._velocities:
            velocities.fill(0)  # zeros are no memory until somebody writes there
        return learner
    of_torch = TorchModel(size // _BYTES_A_COLUMN_OF_TORCH)
    for parameter in of_torch._layers.parameters():
        of_torch._optimizer.state[parameter]["momentum_buffer"] = torch.full_like(parameter, 0.0)
    return of_torch


def skip(file: BinaryIO) -> None:
    """``verify`` only."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, nargs="+", default=[1.0])
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--one", nargs=3)
    parser.add_argument("--where", help="a folder on the storage to measure")
    options = parser.parse_args()
    if options.one:
        one(options.one[0], Path(options.one[1]), int(options.one[2]), options.stream)
        return 0
    print("| GiB | what | s | MB/s | held at most beyond | in all, of a checkpoint |\n|---|---|---|---|---|---|")
    for gib in options.gib:
        size = int(gib * (1 << 30))
        with tempfile.TemporaryDirectory(dir=options.where) as folder:
            for what in WHAT:
                again = [sys.executable, "-m", "tests.bench.checkpoints", "--one", what, folder, str(size)]
                told = subprocess.run(
                    [*again, *["--stream"] * options.stream], check=True, stdout=subprocess.PIPE, text=True
                )
                seconds, beyond, most = map(float, told.stdout.split())
                speed = f"{size / seconds / 1e6:.0f}"
                row = (f"{seconds:.1f}", speed, f"{beyond / 2**20:.0f} MiB", f"{most / size:.2f}")
                print(f"| {gib:g} | {what} | {' | '.join(row)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
