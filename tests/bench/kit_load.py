"""What the kit's benches share: replicas, a load, and a gateway in front of them.

vegeta sends at a constant rate whatever the answers do, as clients of a service do: what queues shows.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from aiohttp import web

PATIENCE_S, ANSWER_S = 10, 0.02
KIT = Path(__file__).parents[2] / "daemonset" / "kit"


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


def attack(vegeta: Path, folder: Path, ports: list[int], rate: int, duration_s: float, *extra: str) -> dict[str, Any]:
    """vegeta's own report of POSTs to these ports in turn."""
    targets = "".join(f"POST http://127.0.0.1:{port}/infer\n" for port in ports)
    command = [
        str(vegeta),
        "attack",
        f"-rate={rate}",
        f"-duration={duration_s}s",
        f"-timeout={PATIENCE_S}s",
        "-max-workers=100000",
        f"-output={folder}/results",
        *extra,
    ]
    subprocess.run(command, input=targets, text=True, check=True)
    told = subprocess.run([str(vegeta), "report", "-type=json", f"{folder}/results"], capture_output=True, check=True)
    return dict(json.loads(told.stdout))


def gateway_before(folder: Path, ports: list[int], *settings: str) -> tuple[subprocess.Popen[str], int]:
    """A gateway in front of replicas at these ports, and its own."""
    names = ",".join(f"127.0.0.1:{port}" for port in ports)
    command = [
        sys.executable,
        str(KIT / "gateway.py"),
        "--replicas",
        names,
        "--port",
        "0",
        "--linger-s",
        "0",
        *settings,
    ]
    with (folder / "gateway.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, text=True)
    return process, listening(folder / "gateway.log")


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
