"""torchrun over the ranks: four pods as the manifest starts them, of which one leaves; and two ranks in one pod."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from signal import Signals

import pytest
import yaml

from tests.kit.conftest import KIT, until
from tests.kit.ill_storage import CODES, Storage

START_S = 240  # on a busy machine PyTorch takes half a minute to start
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
Begin = Callable[..., "Pod"]


class Pod:
    """One torchrun, and the process group of its ranks."""

    def __init__(self, log: Path, command: list[str], environment: dict[str, str]) -> None:
        self.log = log
        environment = {**os.environ, **environment, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
        with log.open("wb") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=out, env=environment)

    def steps(self, word: str) -> list[int]:
        return [int(step) for step in re.findall(rf"{word} step (\d+)", self.log.read_text())]

    def ranks(self) -> list[int]:
        return [int(child) for child in self._children().read_text().split()]

    def _children(self) -> Path:
        return Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")

    def kill(self) -> None:
        """As when a node is lost."""
        if self.process.poll() is None:
            ranks = self.ranks()
            self.process.kill()
            self.process.wait()
            for rank in ranks:
                os.kill(rank, signal.SIGKILL)


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    begun: list[Pod] = []

    def start(command: list[str], environment: dict[str, str] | None = None) -> Pod:
        begun.append(Pod(tmp_path / f"{len(begun)}.log", command, environment or {}))
        return begun[-1]

    yield start
    for pod in begun:
        pod.kill()
        print(pod.log.name, pod.log.read_text()[-3000:])


def manifest(folder: Path, *own: str) -> tuple[list[str], dict[str, str]]:
    """The pod's command, with what differs on one machine, and its environment."""
    job, _ = yaml.safe_load_all((KIT / "ranks" / "training-ranks.yaml").read_text())
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 4
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    text = "\n".join(container["command"])
    for said, here in (
        ("training-ranks-0.training-ranks:29500", f"127.0.0.1:{port}"),
        ("/kit/train_ranks.py", str(KIT / "train_ranks.py")),
        ("/checkpoints/ranks", str(folder / "run")),
        ("/backup/ranks", str(folder / "backup")),
    ):
        assert said in text
        text = text.replace(said, here)
    first, *rest = text.split("\n")
    assert first == "python3"
    environment = {one["name"]: one["value"] for one in container["env"]}
    return [sys.executable, *rest, "--width=16", "--port=0", "--step-s=0.02", *own], environment


def listens(command: list[str]) -> bool:
    """Whether the rendezvous is there."""
    (place,) = (word.rpartition("=")[2] for word in command if word.startswith("--rdzv-endpoint="))
    host, _, port = place.rpartition(":")
    with socket.create_connection((host, int(port)), 5):
        return True


@pytest.mark.parametrize(("parallel", "number"), [("fsdp", signal.SIGTERM), ("ddp", signal.SIGKILL)])
def test_a_pod_that_leaves_costs_one_restart_and_the_others_stay(
    begin: Begin, tmp_path: Path, parallel: str, number: Signals
) -> None:
    command, environment = manifest(tmp_path, f"--parallel={parallel}", "--interval-s=0.5")
    first = begin(command, environment)
    until(lambda: listens(command), START_S)  # as pod 0 alone may: on one machine it is who comes first
    pods = [first, *(begin(command, environment) for _ in range(3))]
    until(lambda: all(len(pod.steps("saved")) > 2 for pod in pods), START_S)
    victim = pods[2]
    if number == signal.SIGTERM:  # an eviction: the kubelet sends it to torchrun, and that to its ranks
        victim.process.terminate()
        assert victim.process.wait(60) != 0, "a Job would call the interrupted training complete"
    else:
        victim.kill()
    others = [pod for pod in pods if pod is not victim]
    last = max(step for pod in pods for step in pod.steps("saved"))
    replacement = begin(command, environment)
    gang = [*others, replacement]
    until(lambda: all(pod.steps("restored") for pod in gang), START_S)
    assert [pod.process.poll() for pod in gang] == [None] * 4
    (restored,) = {tuple(pod.steps("restored")) for pod in gang}
    assert len(restored) == 1, "one restart, not many"
    assert restored[0] >= last
    until(lambda: all(pod.steps("saved")[-1] > restored[0] for pod in gang), 60)


def of_two(folder: Path) -> list[str]:
    """Two ranks in one pod."""
    torchrun = [*TORCHRUN, "--standalone", "--nproc-per-node=2", "--max-restarts=3", str(KIT / "train_ranks.py")]
    return [*torchrun, f"--folder={folder}", "--width=16", "--port=0", "--interval-s=0.2", "--step-s=0.02"]


def test_torchrun_starts_all_ranks_anew_after_one_was_killed(begin: Begin, tmp_path: Path) -> None:
    pod = begin(of_two(tmp_path / "run"), manifest(tmp_path)[1])
    until(lambda: len(pod.steps("saved")) > 6, START_S)
    os.kill(pod.ranks()[-1], signal.SIGKILL)
    restored = until(lambda: pod.steps("restored")[1:] and pod.steps("restored"), START_S)
    assert len(set(restored)) == 1


def test_a_storage_that_fails_for_a_while_is_waited_for_by_all_ranks(begin: Begin, storage: Storage) -> None:
    pod = begin(of_two(storage.folder), manifest(storage.folder)[1] | storage.environment)
    until(lambda: len(pod.steps("saved")) > 6, START_S)
    for code in CODES:
        storage.fails(code)
        until(partial(told, pod, f"can't save: [Errno {code}]", 2))
        saved = len(pod.steps("saved"))
        storage.works()
        until(partial(told, pod, "saved step", saved + 4))
    assert not pod.steps("restored"), "no rank was started anew"
    pod.process.terminate()
    pod.process.wait(60)
    assert len(set(pod.steps("saved")[-2:])) == 1


def told(pod: Pod, word: str, times: int) -> bool:
    return pod.log.read_text().count(word) >= times
