"""Faults of a network between the gateway and one of two replicas, by toxiproxy, while requests come."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

from tests.bench.kit_load import Replicas, attack, gateway_before
from tests.cache import go_program

TOXIPROXY = "github.com/Shopify/toxiproxy/v2/cmd/server@v2.12.0"
RATE, DURATION_S, CALM_S = 60, 10, 2
SETTINGS = ("--read-s", "1", "--total-s", "8", "--most-per-replica", "64")  # a busy machine that stalls is no fault
FAULTS: dict[str, dict[str, Any]] = {
    "down: refuses connections": {},
    "latency 2 s": {"type": "latency", "attributes": {"latency": 2000}},
    "latency 0.5 s, jitter 0.5 s": {"type": "latency", "attributes": {"latency": 500, "jitter": 500}},
    "bandwidth 1 kB/s": {"type": "bandwidth", "attributes": {"rate": 1}},
    "slow_close 2 s": {"type": "slow_close", "attributes": {"delay": 2000}},
    "timeout: takes all, gives nothing": {"type": "timeout", "attributes": {"timeout": 0}},
    "timeout: the same, closes after 0.5 s": {"type": "timeout", "attributes": {"timeout": 500}},
    "reset_peer after 0.1 s": {"type": "reset_peer", "attributes": {"timeout": 100}},
    "slicer: a byte each 0.1 s": {"type": "slicer", "attributes": {"average_size": 1, "delay": 100_000}},
    "limit_data: closes after 20 bytes": {"type": "limit_data", "attributes": {"bytes": 20}},
}


def table(vegeta: Path, folder: Path) -> None:
    print(f"\n{RATE} requests a second for {DURATION_S} s; after {CALM_S} s one of two replicas gets the fault\n")
    print("| fault | answered | else | p50 | p99 | longest |\n|---|---|---|---|---|---|")
    replicas = Replicas(("behind the fault", "well"))
    replicas.start()
    replicas.started.wait()
    toxiproxy, api = _started(folder / "toxiproxy.log")
    try:
        for number, (name, toxic) in enumerate(FAULTS.items()):
            upstream = {"name": f"p{number}", "listen": "127.0.0.1:0", "upstream": f"127.0.0.1:{replicas.ports[0]}"}
            port = int(_ask(f"{api}/proxies", upstream)["listen"].rpartition(":")[2])
            gateway, own = gateway_before(folder, [port, replicas.ports[1]], *SETTINGS)
            path, body = (f"p{number}/toxics", toxic) if toxic else (f"p{number}", {"enabled": False})
            fault = threading.Timer(CALM_S, _ask, (f"{api}/proxies/{path}", body))
            fault.start()
            report = attack(vegeta, folder, [own], RATE, DURATION_S)
            fault.join()
            gateway.terminate()
            gateway.wait(90)
            _row(name, report)
    finally:
        toxiproxy.terminate()
        toxiproxy.wait(30)


def _row(name: str, report: dict[str, Any]) -> None:
    codes = [f"{n}x {code}".replace("x 0", "x none") for code, n in report["status_codes"].items() if code != "200"]
    took = [f"{report['latencies'][which] / 1e6:.0f} ms" for which in ("50th", "99th", "max")]
    row = (name, f"{100 * report['success']:.2f} %", ", ".join(codes), *took)
    print(f"| {' | '.join(row)} |", flush=True)


def _started(log: Path) -> tuple[subprocess.Popen[bytes], str]:
    """toxiproxy, and where its API is."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with log.open("wb") as out:
        command = [str(go_program(TOXIPROXY, "server")), "-host", "127.0.0.1", "-port", str(port)]
        process = subprocess.Popen(command, stdout=out, stderr=out)
    for _ in range(300):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return process, f"http://127.0.0.1:{port}"
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(log.read_text())


def _ask(url: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return dict(json.load(answer))
