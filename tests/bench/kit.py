"""``make kit-bench``: a load on three replicas, of which one hangs and one fails, with and without the gateway.

vegeta sends at a constant rate whatever the answers do, as clients of a service do: what queues shows.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from aiohttp import web

from tests.cluster.build import _go

RATE, DURATION_S, PATIENCE_S, ANSWER_S = 100, 30, 10, 0.02
READ_S, TOTAL_S = 0.5, 2
VEGETA = "github.com/tsenart/vegeta/v12@v12.13.0"
KIT = Path(__file__).parents[2] / "daemonset" / "kit"
UNPROTECTED = (
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


class Replicas(threading.Thread):
    """Three in one process: what they do and how much of it."""

    def __init__(self, kinds: tuple[str, ...]) -> None:
        super().__init__(daemon=True)
        self._kinds, self.ports, self.started = kinds, list[int](), threading.Event()
        self.served, self._busy, self.most = Counter[str](), Counter[str](), Counter[str]()

    def run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        for kind in self._kinds:
            runner = web.ServerRunner(web.Server(partial(self._answer, kind)))
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0, backlog=4096)
            await site.start()
            self.ports.append(runner.addresses[0][1])
        self.started.set()
        await asyncio.Event().wait()

    async def _answer(self, kind: str, _request: web.BaseRequest) -> web.Response:
        self.served[kind] += 1
        self._busy[kind] += 1
        self.most[kind] = max(self.most[kind], self._busy[kind])
        try:
            if kind == "fails":
                return web.Response(status=500)
            await asyncio.sleep(3600 if kind == "hangs" else ANSWER_S)
            return web.json_response({})
        finally:
            self._busy[kind] -= 1


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
    vegeta = generator()
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
    return 0


def generator() -> Path:
    """vegeta, built once from Go's module proxy."""
    folder = Path.home() / ".cache" / "gpu-health-agent" / "vegeta"
    if not (folder / "vegeta").exists():
        folder.mkdir(parents=True, exist_ok=True)
        path = f"{_go(folder.parent, print)}:{os.environ['PATH']}"
        environment = {**os.environ, "GOBIN": str(folder), "CGO_ENABLED": "0", "PATH": path}
        subprocess.run(["go", "install", VEGETA], check=True, env=environment)
    return folder / "vegeta"


def measure(what: str, vegeta: Path, folder: Path, settings: tuple[str, ...] | None) -> None:
    replicas = Replicas(("answers", "hangs", "fails"))
    replicas.start()
    replicas.started.wait()
    ports, gateway, status = replicas.ports, None, None
    if settings is not None:
        names = ",".join(f"127.0.0.1:{port}" for port in replicas.ports)
        log = (folder / "gateway.log").open("w+")
        command = [sys.executable, str(KIT / "gateway.py"), "--replicas", names, "--port", "0", "--linger-s", "0"]
        gateway = subprocess.Popen([*command, *settings], stdout=log, stderr=log)
        ports = [listening(folder / "gateway.log")]
        status = Status(ports[0])
        status.start()
    targets = "".join(f"POST http://127.0.0.1:{port}/infer\n" for port in ports)
    attack = [
        str(vegeta),
        "attack",
        f"-rate={RATE}",
        f"-duration={DURATION_S}s",
        f"-timeout={PATIENCE_S}s",
        "-max-workers=100000",
        f"-output={folder}/results",
    ]
    subprocess.run(attack, input=targets, text=True, check=True)
    told = subprocess.run([str(vegeta), "report", "-type=json", f"{folder}/results"], capture_output=True, check=True)
    report = json.loads(told.stdout)
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


def listening(log: Path) -> int:
    for _ in range(600):
        if "port " in (text := log.read_text()):
            port = int(text.rpartition("port ")[2].split()[0])
            try:
                get(port)
                return port
            except OSError:
                pass
        time.sleep(0.1)
    raise RuntimeError(log.read_text())


def get(port: int) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/status", timeout=30) as answer:
        return dict(json.load(answer))


if __name__ == "__main__":
    sys.exit(main())
