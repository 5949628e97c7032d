"""What a gateway adds in front of three replicas that are well: time to an answer, and CPU to a request."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

from tests.bench.kit_load import ANSWER_S, Replicas, attack, gateway_before
from tests.kit.envoy import Envoy

RATE, DURATION_S = 100, 15


def table(vegeta: Path, folder: Path) -> None:
    print(f"\n{RATE} requests a second for {DURATION_S} s; three replicas answer in {1000 * ANSWER_S:.0f} ms\n")
    print("| | connections | answered | p50 | p99 | CPU a request |\n|---|---|---|---|---|---|")
    for kept in (True, False):
        replicas = Replicas(("first", "second", "third"))
        replicas.start()
        replicas.started.wait()
        _row("none", vegeta, folder, replicas.ports, None, kept)
        gateway, port = gateway_before(folder, replicas.ports)
        _row("gateway", vegeta, folder, [port], gateway, kept)
        (folder / "envoy").mkdir(exist_ok=True)
        envoy = Envoy(folder / "envoy", replicas.ports, [])
        _row("Envoy", vegeta, folder, [envoy.port], envoy.process, kept)
        for process in (gateway, envoy.process):
            process.terminate()
            process.wait(90)


def _row(
    name: str, vegeta: Path, folder: Path, ports: list[int], process: subprocess.Popen[Any] | None, kept: bool
) -> None:
    attack(vegeta, folder, ports, RATE, 2, f"-keepalive={str(kept).lower()}")  # both warm
    before_s = _cpu_s(process)
    report = attack(vegeta, folder, ports, RATE, DURATION_S, f"-keepalive={str(kept).lower()}")
    cpu_ms = 1000 * (_cpu_s(process) - before_s) / report["requests"]
    row = (
        name,
        "kept" if kept else "one for each request",
        f"{100 * report['success']:.1f} %",
        *(f"{report['latencies'][which] / 1e6:.1f} ms" for which in ("50th", "99th")),
        f"{cpu_ms:.2f} ms" if process else "-",
    )
    print(f"| {' | '.join(row)} |", flush=True)


def _cpu_s(process: subprocess.Popen[Any] | None) -> float:
    if process is None:
        return 0.0
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
