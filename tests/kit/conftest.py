"""Starts the kit's programs as their pods do, on loopback."""

from __future__ import annotations

import http.client
import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from signal import SIGTERM, Signals
from typing import Any

import pytest
from checkpoint import BrokenError, Folder
from model import Model

from tests.kit.ill_storage import Storage, built
from tests.kit.stub import Stub

KIT = Path(__file__).parents[2] / "daemonset" / "kit"


def save(folder: Folder, step: int, content: bytes) -> None:
    folder.save(step, lambda file: file.write(content))


def newest(folder: Folder, patience_s: float = 0) -> tuple[int, bytes] | None:
    """Step and content of the newest whole checkpoint; None if there is none, or none is whole."""
    read: list[bytes] = []
    try:
        found = folder.restore(lambda file: read.append(file.read()), patience_s)
    except BrokenError:
        return None
    return (found.step, read[-1]) if found else None


def dumped(learner: Model) -> bytes:
    learner.dump(file := io.BytesIO())
    return file.getvalue()


def until(seen: Callable[[], Any], timeout_s: float = 180) -> Any:
    """Until ``seen`` gives something; on a busy machine PyTorch takes half a minute to start."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        try:
            if found := seen():
                return found
        except (OSError, http.client.HTTPException):
            pass
        time.sleep(0.01)
    raise TimeoutError


class Program:
    """One of the kit's programs, running."""

    def __init__(self, log: Path, name: str, *arguments: object, environment: dict[str, str] | None = None) -> None:
        self.log = log
        command = [sys.executable, "-W", "error", str(KIT / name), *map(str, arguments)]
        with log.open("wb") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, **(environment or {})})

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def port(self) -> int:
        """As it said; a program that ended shows its log."""

        def said() -> int:
            assert self.process.poll() is None, self.text()
            found = re.search(r"port (\d+)", self.text())
            return int(found[1]) if found else 0

        return int(until(said))

    def request(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, timeout_s: float = 30
    ) -> tuple[int, bytes, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port(), timeout=timeout_s)
        try:
            data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            connection.request(method, path, data, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()}
        finally:
            connection.close()

    def get(self, path: str) -> Any:
        return json.loads(self.request("GET", path)[1])

    def signal(self, number: Signals) -> None:
        self.process.send_signal(number)

    def end(self, number: Signals = SIGTERM) -> int:
        self.signal(number)
        return self.process.wait(180)


Start = Callable[..., Program]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts programs; shows their logs if the test fails, and ends what still runs."""
    started: list[Program] = []

    def begin(name: str, *arguments: object, environment: dict[str, str] | None = None) -> Program:
        log = tmp_path / f"{len(started)}-{Path(name).name}.log"
        started.append(Program(log, name, *arguments, environment=environment))
        return started[-1]

    yield begin
    for program in started:
        if program.process.poll() is None:
            program.process.kill()
            program.process.wait()
        print(program.log.name, program.text()[-3000:])


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("ill-storage") / "ill_storage.so")


@pytest.fixture
def storage(tmp_path: Path, library: Path) -> Iterator[Storage]:
    made = Storage(tmp_path, library)
    yield made
    made.works()


@pytest.fixture
def stubs() -> Iterator[list[Stub]]:
    made = [Stub() for _ in range(3)]
    yield made
    for one in made:
        one.close()


Front = Callable[..., Program]


@pytest.fixture
def front(start: Start, stubs: list[Stub]) -> Front:
    def begin(*extra: object, replicas: str = "") -> Program:
        names = replicas or ",".join(f"127.0.0.1:{stub.port}" for stub in stubs)
        gateway = start("gateway.py", "--replicas", names, "--port", 0, "--linger-s", 0.2, *extra)
        until(lambda: gateway.request("GET", "/readyz")[0] == 200)
        return gateway

    return begin


def infer(gateway: Program, path: str = "/infer") -> int:
    return gateway.request("POST", path, {"inputs": []})[0]


def metric(gateway: Program, name: str, label: str = "") -> float:
    """Summed over the series of that name; of those with that label only, if one is given."""
    lines = gateway.request("GET", "/metrics")[1].decode().splitlines()
    named = [line for line in lines if re.split("[{ ]", line)[0] == name and label in line]
    return sum(float(line.split()[-1]) for line in named)


def breakers(gateway: Program) -> dict[int, str]:
    return {int(name.split(":")[1]): told["breaker"] for name, told in gateway.get("/status")["replicas"].items()}
