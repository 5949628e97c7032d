"""For ``kills``, without PyTorch: what rank 0 does in sharded.py, a directory of four shards and its mark each time."""

from __future__ import annotations

import argparse
import os
import uuid
from pathlib import Path

import directory
from checkpoint import Folder


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    folder = Folder(parser.parse_known_args()[0].folder)
    folder.claim()
    directory.sweep(folder)
    step = 0
    if found := folder.restore(directory.check):
        step = found.step
        print(f"restored step {step}")
    print(f"training from step {step}", flush=True)
    while True:
        step += 1
        shards = folder.path / f"{directory.SHARDS}{uuid.uuid4().hex}"
        shards.mkdir()
        for rank in range(4):
            (shards / f"__{rank}_0.distcp").write_bytes(os.urandom(10_000))
        summed = directory.files(shards)
        folder.save(step, lambda file, name=shards.name, summed=summed: directory.mark(file, name, summed))  # type: ignore[misc]
        directory.sweep(folder)
        print(f"saved step {step}", flush=True)
