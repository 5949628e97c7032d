"""What processes take, as the kernel counts it."""

from __future__ import annotations

import os
from pathlib import Path


def rollup(pid: int, kind: str) -> float:
    """MiB of a process: ``Rss`` or ``Pss``."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(f"{kind}:"):
            return int(line.split()[1]) / 1024
    return 0.0


def cpu_s(pids: list[int]) -> float:
    """CPU seconds that they used so far."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def own_rss_mib() -> float:
    return rollup(os.getpid(), "Rss")
