"""``make kit-bench``: what the gateway saves, what it costs beside Envoy, and which faults of a network it hides.

The first table is a load on three replicas, of which one hangs and one fails, with and without the gateway.
"""

from __future__ import annotations

import sys
import tempfile
import threading
from pathlib import Path

from tests.bench import kit_cost, kit_faults
from tests.bench.kit_load import ANSWER_S, PATIENCE_S, Replicas, attack, gateway_before, get
from tests.cache import go_program

RATE, DURATION_S = 100, 30
READ_S, TOTAL_S = 0.5, 2
VEGETA = "github.com/tsenart/vegeta/v12@v12.13.0"
UNPROTECTED = (
    "--attempts",
    "3",
    "--breaker-failures",
    "1000000000",
    "--retry-share",
    "1000000000",
    "--most-per-replica",
    "1000000",
    "--read-s",
    str(PATIENCE_S),
    "--total-s",
    str(PATIENCE_S),
)
PROTECTED = ("--read-s", str(READ_S), "--total-s", str(TOTAL_S))  # the rest as it comes


class Status(threading.Thread):
    """Asks the gateway each half second how many retries the window holds."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self._port, self.over = port, threading.Event()
        self.most_retries = 0.0

    def run(self) -> None:
        while not self.over.wait(0.5):
            window = get(self._port)["window"]
            self.most_retries = max(self.most_retries, window["retries"] / max(1, window["requests"]))


def main() -> int:
    vegeta = go_program(VEGETA, "vegeta")
    print(
        f"{RATE} requests a second for {DURATION_S} s; one of three replicas answers in {1000 * ANSWER_S:.0f} ms, one"
    )
    print(f"hangs, one answers 500; clients wait {PATIENCE_S} s, the gateway {READ_S} s for a replica\n")
    columns = (
        "",
        "answered",
        "else",
        "p50",
        "p99",
        "longest",
        "sent to replicas",
        "retries in 10 s",
        "at replicas at once",
    )
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    with tempfile.TemporaryDirectory(prefix="gpu-health-agent-kit-bench-") as name:
        measure("no gateway, as a Service spreads them", vegeta, Path(name), None)
        measure("gateway, protections off", vegeta, Path(name), UNPROTECTED)
        measure("gateway", vegeta, Path(name), PROTECTED)
        kit_cost.table(vegeta, Path(name))
        kit_faults.table(vegeta, Path(name))
    return 0


def measure(what: str, vegeta: Path, folder: Path, settings: tuple[str, ...] | None) -> None:
    replicas = Replicas(("answers", "hangs", "fails"))
    replicas.start()
    replicas.started.wait()
    ports, gateway, status = replicas.ports, None, None
    if settings is not None:
        gateway, port = gateway_before(folder, replicas.ports, *settings)
        ports = [port]
        status = Status(ports[0])
        status.start()
    report = attack(vegeta, folder, ports, RATE, DURATION_S)
    retries = "-"
    if status is not None and gateway is not None:
        status.over.set()
        status.join()
        retries = f"at most {100 * status.most_retries:.0f} %"
        gateway.terminate()
        gateway.wait(90)
    codes = [f"{n}x {code}".replace("x 0", "x none") for code, n in report["status_codes"].items() if code != "200"]
    took = [f"{report['latencies'][name] / 1e6:.0f} ms" for name in ("50th", "99th", "max")]
    sent = f"{100 * sum(replicas.served.values()) / report['requests']:.0f} %"
    row = (
        what,
        f"{100 * report['success']:.1f} %",
        ", ".join(codes),
        *took,
        sent,
        retries,
        f"at most {sum(replicas.most.values())}",
    )
    print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
