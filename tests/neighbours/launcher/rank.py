"""A rank that meets the others and fails: RAN gets a line each time, and the last of STARTS waits for GO first."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

ran, starts, go = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
dist.init_process_group("gloo")
met = torch.ones(1)
dist.all_reduce(met)
if dist.get_rank() == 0:
    with ran.open("a") as out:
        out.write(f"{int(met)}\n")
dist.barrier()
if len(ran.read_text().splitlines()) == starts:
    while not go.exists():
        time.sleep(0.1)
sys.exit(3)
