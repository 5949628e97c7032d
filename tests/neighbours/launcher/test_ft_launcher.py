"""NVIDIA's released launcher, with gloo, on a node whose GPUs are simulated and whose agent is real."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.conftest import Site, StartAgent
from tests.cluster.control_plane import _free_ports
from tests.neighbours.launcher.released import launcher
from tests.running import ROOT, environment

RANK = Path(__file__).parent / "rank.py"
STARTS = 20


class Launches:
    """The launcher's starts of two ranks, and how often they ran."""

    def __init__(self, folder: Path) -> None:
        self.ran, self.go, self.socket = folder / "ran", folder / "go", folder / "nvhcd.sock"
        self._folder, self.log = folder, folder / "launcher.log"
        self._command, self._environment = launcher()
        self._begun: list[subprocess.Popen[bytes]] = []
        self.ran.touch()

    def begin(self) -> subprocess.Popen[bytes]:
        asks = ["--ft-node-health-check-endpoint", f"unix://{self.socket}"]
        meets = ["--nnodes=1", "--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
        again = [f"--max-restarts={2 * STARTS}", "--monitor-interval=0.2"]
        command = [*self._command, *meets, *again, *asks, str(RANK), str(self.ran), str(STARTS), str(self.go)]
        around = {**self._environment, "TMPDIR": str(self._folder)}
        with self.log.open("wb") as out:
            begun = subprocess.Popen(command, cwd=self._folder, env=around, stdout=out, stderr=out)
        self._begun.append(begun)
        return begun

    def is_refused(self, begun: subprocess.Popen[bytes]) -> bool:
        """It has ended, and says that the node is not fit."""
        code, said = begun.wait(300), self.log.read_text()
        assert code == 1, said[-5000:]
        return "UnhealthyNodeException" in said

    def end(self) -> None:
        """Whatever still runs: its ranks end with it."""
        for one in self._begun:
            one.terminate()
            one.wait(60)

    @property
    def times(self) -> int:
        return len(self.ran.read_text().splitlines())


@pytest.fixture
def launches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launches]:
    made = Launches(tmp_path_factory.mktemp("ft"))
    yield made
    made.end()


def test_its_ranks_start_each_time_on_a_healthy_node_and_never_on_a_bad_one(
    site: Site, agent: StartAgent, launches: Launches
) -> None:
    (port,) = _free_ports(1)
    running = agent(simulate="idle", http={"address": "127.0.0.1", "port": port})
    site.plane.wait("healthy", lambda: running.state()["status"] == "healthy")
    check = running.folder / "check.sock"
    sockets = ["--socket", str(check), "--nvhcd", str(launches.socket)]
    command = [sys.executable, "-m", "agent", "door", "--config", str(running.config), *sockets]
    door = subprocess.Popen(command, cwd=ROOT, env=environment())
    try:
        site.plane.wait("the door is open", lambda: launches.socket.exists() and said(check) == 0)
        first = launches.begin()
        site.plane.wait("it started again and again", lambda: launches.times == STARTS, 60 * STARTS)
        running.inject("--gpu", "3", "--xid", "95")
        site.plane.wait("not fit", lambda: said(check) == 2)
        launches.go.touch()  # the ranks fail once more
        assert launches.is_refused(first)
        for _ in range(STARTS):
            assert launches.is_refused(launches.begin())
        assert launches.times == STARTS
    finally:
        door.terminate()
        door.wait(20)


def said(socket: Path) -> int:
    command = [sys.executable, "-m", "agent", "check", "--socket", str(socket)]
    return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True).returncode
