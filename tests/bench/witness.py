"""What the DCGM source takes, beside an engine of eight GPUs and without one."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.usage import cpu_s, rollup
from tests.dcgm.standin import GENERATIONS, Engine, bindings, library

WATCHED_S = 90
ADDRESSES = ("1b", "43", "52", "61", "9d", "c3", "d1", "df")


def witness() -> None:
    """NVIDIA's bindings over the stand-in library: what DCGM's own library takes in this process is not in it."""
    with tempfile.TemporaryDirectory(prefix="gpu-health-agent-bench-dcgm-") as name:
        folder, found = Path(name), bindings(GENERATIONS[-1])
        engine = Engine(folder, found, library(found, folder / "library"))
        engine.answers(
            gpus="".join(f"gpu {i} 00000000:{bus}:00.0 GPU-{i}\n" for i, bus in enumerate(ADDRESSES)),
            values="".join(f"value 1 {i} 0 i 44\n" for i in range(8)),
        )
        print(f"DCGM source (bindings of {GENERATIONS[-1]}), 10 s poll, 30 s health check, {WATCHED_S} s")
        _measure("eight GPUs", engine, engine.options())
        _measure("no engine", engine, ["--address", "127.0.0.1:1"])
        engine.stops_listening()


def _measure(what: str, engine: Engine, options: list[str]) -> None:
    command = [sys.executable, "-m", "agent.sources.dcgm", *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=engine.environment()) as process:
        time.sleep(5)
        cpu, began = cpu_s([process.pid]), time.monotonic()
        time.sleep(WATCHED_S)
        used = 100 * (cpu_s([process.pid]) - cpu) / (time.monotonic() - began)
        sizes = f"RSS {rollup(process.pid, 'Rss'):5.1f} MiB  PSS {rollup(process.pid, 'Pss'):5.1f} MiB"
        print(f"  {what:<28}  {sizes}  CPU {used:.2f} % of a core", flush=True)
        process.terminate()
