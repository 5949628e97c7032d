"""The callbacks in the libraries themselves: two ranks, as two pods have them. With Transformers and Lightning."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit.conftest import KIT, until

RANKS = 2
Begin = Callable[[], "Gang"]


class Gang:
    """A life of the training."""

    def __init__(self, program: str, folder: Path, number: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.logs = [folder / f"{number}-{rank}.log" for rank in range(RANKS)]
        self.processes = []
        for rank, log in enumerate(self.logs):
            ranks = {"RANK": str(rank), "NODE_RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": str(RANKS)}
            place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
            environment = {**os.environ, **ranks, **place, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(KIT)}
            command = [sys.executable, str(Path(__file__).with_name(program)), str(folder / "run")]
            with log.open("w") as out:
                self.processes.append(subprocess.Popen(command, stdout=out, stderr=out, env=environment))

    def ask(self, rank: int, method: str, path: str) -> tuple[int, Any]:
        assert all(process.poll() is None for process in self.processes), "a rank has ended"
        (port,) = re.findall(r"^port (\d+)", self.logs[rank].read_text(), re.MULTILINE) or [0]
        connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=10)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def step(self, rank: int = 0) -> int:
        return int(self.ask(rank, "GET", "/status")[1]["step"])


@pytest.fixture(params=["in_trainer.py", "in_lightning.py"])
def begin(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Begin]:
    begun: list[Gang] = []

    def make() -> Gang:
        begun.append(Gang(request.param, tmp_path, len(begun)))
        return begun[-1]

    yield make
    for gang in begun:
        for process in gang.processes:
            process.kill()
            process.wait()
        print(*(log.read_text()[-3000:] for log in gang.logs), sep="\n")


def saved(folder: Path) -> list[int]:
    """The steps of the checkpoints that are there."""
    names = [path.name for path in folder.glob("*") if path.name.startswith(("checkpoint-", "asked-"))]
    return sorted(int(number) for name in names for number in re.findall(r"\d+", name))


def test_the_rank_that_is_asked_or_ended_takes_the_other_along(begin: Begin, tmp_path: Path) -> None:
    gang = begin()
    until(lambda: gang.step() > 2, 180)
    until(lambda: gang.ask(1, "POST", "/checkpoint")[0] == 200)
    (first,) = saved(tmp_path / "run")  # rank 0 writes it, and nobody asked that one
    os.kill(gang.processes[1].pid, signal.SIGTERM)
    assert [process.wait(60) for process in gang.processes] == [143, 143]
    last = saved(tmp_path / "run")[-1]
    assert 0 < first < last
    again = begin()
    assert until(lambda: again.step(1) > 0 and again.step(1), 180) >= last
