"""What each source's process takes by itself: NVML on simulated GPUs, the kernel log, DCGM on a stand-in engine."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from agent.config.settings import Config
from agent.sources.process.command_lines import commands
from tests.bench.usage import cpu_s, rollup
from tests.dcgm.standin import GENERATIONS, Engine, bindings, library

WATCHED_S = 90
ADDRESSES = ("1b", "43", "52", "61", "9d", "c3", "d1", "df")


def witness() -> None:
    """NVIDIA's bindings over the stand-in library: what DCGM's own library takes in this process is not in it."""
    with tempfile.TemporaryDirectory(prefix="gpu-health-agent-bench-sources-") as name:
        folder, found = Path(name), bindings(GENERATIONS[-1])
        engine = Engine(folder, found, library(found, folder / "library"))
        engine.answers(
            gpus="".join(f"gpu {i} 00000000:{bus}:00.0 GPU-{i}\n" for i, bus in enumerate(ADDRESSES)),
            values="".join(f"value 1 {i} 0 i 44\n" for i in range(8)),
        )
        (folder / "kmsg").touch()
        lines = commands(Config.model_validate({"sources": {"simulated": {"scenario": "idle"}}}), folder)
        dcgm = [sys.executable, "-m", "agent.sources.dcgm"]
        print(f"sources by themselves, 5 s poll (DCGM: 10 s, 30 s health check), {WATCHED_S} s")
        _measure(
            {
                "nvml, 8 simulated GPUs": lines["nvml"],
                "kmsg, quiet": lines["kmsg"],
                f"dcgm, stand-in engine, 8 GPUs, bindings of {GENERATIONS[-1]}": [*dcgm, *engine.options()],
                "dcgm, no engine": [*dcgm, *engine.options("127.0.0.1:1")],
            },
            engine,
        )
        engine.stops_listening()


def _measure(rows: Mapping[str, list[str]], engine: Engine) -> None:
    quiet, environment = subprocess.DEVNULL, engine.environment()
    begun = {what: subprocess.Popen(line, stdout=quiet, env=environment) for what, line in rows.items()}
    time.sleep(5)
    cpu, began = {what: cpu_s([process.pid]) for what, process in begun.items()}, time.monotonic()
    time.sleep(WATCHED_S)
    for what, process in begun.items():
        used = 100 * (cpu_s([process.pid]) - cpu[what]) / (time.monotonic() - began)
        sizes = f"RSS {rollup(process.pid, 'Rss'):5.1f} MiB  PSS {rollup(process.pid, 'Pss'):5.1f} MiB"
        print(f"  {what:<48}  {sizes}  CPU {used:.2f} % of a core", flush=True)
        process.terminate()
        process.wait(10)
