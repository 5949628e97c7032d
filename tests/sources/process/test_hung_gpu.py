"""A call into one GPU that never returns: its process is left alone, and one more reads the others, never two."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import pytest

from agent.config.settings import Config
from agent.model.fault import Status
from agent.model.observation import Failure, Observation, Signal
from agent.runtime.daemon import Daemon
from agent.sources.process.remote import Remote
from agent.sources.process.serving import Serving
from agent.sources.process.source import Source
from agent.sources.process.supervisor import Supervisor
from tests.observe import GPU, OTHER
from tests.waiting import LATEST_S, until

ALIVE = Observation(0, "nvml", Signal.ALIVE).to_json()
NONE = set[str]()
PYTHON = [sys.executable, "-I", "-S", "-c"]  # begins in a third of the time


def hung(pci: str) -> str:
    return Observation(0, "nvml", Signal.FAILED, pci, Failure.HUNG, raw="it hangs").to_json()


def says(*lines: str) -> list[str]:
    """A program that says these lines, and then hangs: SIGTERM is nothing to it."""
    stays = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    return [*PYTHON, f"{stays}for line in {lines!r}: print(line, flush=True)\nwhile True: time.sleep(9)"]


def beats(*lines: str) -> list[str]:
    """One that says them over and over, as polls do."""
    said = f"  for line in {lines!r}: print(line, flush=True)\n"
    return [*PYTHON, f"import time\nwhile True:\n{said}  time.sleep(0.01)"]


class InTheKernel(Source):
    """Whose processes are not ended by SIGKILL, as in uninterruptible sleep, until the test lets go."""

    killed: list[int]

    def _signal(self, number: signal.Signals) -> None:
        if number is signal.SIGKILL and self._process is not None:
            self.killed.append(self._process.pid)
        else:
            super()._signal(number)


class Run:
    """A source with a hung time of 60 s, along a made-up clock."""

    def __init__(self, program: Callable[[Collection[str]], list[str]]) -> None:
        self.asked: list[set[str]] = []
        self.now = 1000.0
        self._program = program
        self.source = InTheKernel("nvml", self._argv, 60.0)
        self.source.killed = []

    def _argv(self, left_out: Collection[str]) -> list[str]:
        self.asked.append(set(left_out))
        return self._program(left_out)

    def hears(self, wanted: Callable[[Observation], bool]) -> None:
        """Until it has said so, at one moment of the clock."""
        until(lambda: any(map(wanted, self.turn())))

    def turn(self, seconds: float = 0.0) -> tuple[Observation, ...]:
        self.now += seconds
        self.source.tick(self.now)
        return self.source.read(self.now)

    def ends_what_is_stuck(self) -> None:
        os.kill(self.source.killed.pop(), signal.SIGKILL)
        until(lambda: not self.source._lives_stuck())

    def tries_again(self, left_out: set[str] = NONE) -> None:
        """Until just these are left out. The clock goes on between its words, whatever the machine is busy with."""
        while not self.source._replaced:
            self.hears(beat)
            self.turn(20)
        until(lambda: self.turn() is None or self.asked[-1] == left_out)

    def end(self) -> None:
        pids = [*self.source.killed, *([self.source.status.pid] if self.source.status.pid else [])]
        self.source.close(0.0)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        until(lambda: self.source.status.ended)


@pytest.fixture
def runs() -> Iterator[list[Run]]:
    made: list[Run] = []
    yield made
    for one in made:
        one.end()


def hangs(o: Observation) -> bool:
    return o.value == Failure.HUNG


def beat(o: Observation) -> bool:
    return o.signal is Signal.ALIVE


def test_a_stuck_process_is_killed_once_and_its_gpu_left_out_until_it_has_ended(runs: list[Run]) -> None:
    runs.append(run := Run(lambda left_out: beats(ALIVE, hung(GPU)) if left_out else says(ALIVE, hung(GPU))))
    run.hears(hangs)
    run.turn(29)
    assert (run.asked, run.source.killed) == ([NONE], []), "a call may take long"
    first = run.source.status.pid
    run.turn(2)
    run.hears(beat)
    assert run.asked == [NONE, {GPU}]
    for _ in range(30):
        run.turn(50)
        run.hears(beat)
    assert (run.asked, run.source.killed) == ([NONE, {GPU}], [first]), "25 minutes later nothing else was tried"
    assert run.source.status.running
    assert GPU in run.source.status.trouble
    assert not run.source.status.ended, "a reset must wait for the stuck one as well"
    run.ends_what_is_stuck()
    until(lambda: run.turn() is None or len(run.asked) == 3)  # its time was over long ago: the clock stands
    assert run.asked[2] == NONE, "the GPU is tried again"


def test_a_gpu_that_hangs_again_and_again_is_tried_ever_more_seldom(runs: list[Run]) -> None:
    runs.append(run := Run(lambda left_out: beats(ALIVE, hung(GPU)) if left_out else says(ALIVE, hung(GPU))))
    pauses = list[float]()
    for _ in range(5):
        run.hears(lambda o: hangs(o) and run.source._hung_at == GPU)
        run.turn(31)
        began = run.now
        run.ends_what_is_stuck()
        run.tries_again()
        pauses.append(run.now - began)
    assert pauses == [60, 120, 240, 480, 600]


def test_gpus_that_hang_and_whose_processes_end_are_all_left_out(runs: list[Run]) -> None:
    """They took turns once, and no GPU was read."""
    bad = [GPU, OTHER]

    def program(left_out: Collection[str]) -> list[str]:
        hangs_at = [gpu for gpu in bad if gpu not in left_out]
        return says(ALIVE, hung(hangs_at[0])) if hangs_at else beats(ALIVE)

    runs.append(run := Run(program))
    for left_out in ({GPU}, {GPU, OTHER}):
        run.hears(hangs)
        run.turn(31)
        run.ends_what_is_stuck()
        run.turn()
        assert run.asked[-1] == left_out
    run.hears(beat)
    bad.clear()
    run.tries_again(left_out={OTHER})
    run.tries_again()


def test_a_gpu_that_hung_before_keeps_the_others_waiting_for_a_shorter_time(runs: list[Run]) -> None:
    runs.append(run := Run(lambda left_out: beats(ALIVE, hung(GPU)) if left_out else says(ALIVE, hung(GPU))))
    for patience_s in (30, 10):
        run.hears(lambda o: hangs(o) and run.source._hung_at == GPU)
        run.turn(patience_s - 1)
        assert run.asked[-1] == NONE
        run.turn(2)
        run.ends_what_is_stuck()
        run.hears(beat)
        assert run.asked[-1] == {GPU}
        run.tries_again()


def test_beside_a_stuck_process_a_second_one_that_hangs_has_no_third(runs: list[Run]) -> None:
    runs.append(run := Run(lambda left_out: says(ALIVE, hung(OTHER if left_out else GPU))))
    run.hears(hangs)
    run.turn(31)
    run.hears(lambda o: hangs(o) and o.pci == OTHER)
    for _ in range(600):
        run.turn(1)
    assert run.asked == [NONE, {GPU}]
    assert len(set(run.source.killed)) == len(run.source.killed) == 2
    assert "no other one is started" in run.source.status.trouble


@pytest.mark.parametrize("where", ["", GPU], ids=["in a call about no GPU", "at a GPU"])
def test_who_keeps_off_ends_them_all_and_is_told_what_is_left(runs: list[Run], where: str) -> None:
    runs.append(run := Run(lambda left_out: says(ALIVE, hung(GPU if left_out else where))))
    run.hears(hangs)
    run.source.close(0.0)
    assert (run.source.status.running, run.source.status.ended) == (False, False)
    for _ in range(300):
        run.turn(1)
    assert run.asked == ([NONE, {GPU}] if where else [NONE]), "what hangs in nvmlInit has nothing beside it"


def test_a_poll_that_takes_ten_minutes_and_says_so_is_not_ended(runs: list[Run]) -> None:
    runs.append(run := Run(lambda _: beats(Observation(0, "nvml", Signal.SLOW, value=9.0).to_json())))
    for _ in range(15):
        run.hears(lambda o: o.signal is Signal.SLOW)
        run.turn(50)
    assert (run.asked, run.source.killed) == ([NONE], [])


SIMULATED = """
import sys, threading, time
from pathlib import Path
from agent.simulation.gpu import h100_8
from agent.simulation.library import Library
from agent.sources.nvml.session import follow
from agent.sources.process.program import say
folder, left_out = Path(sys.argv[1]), sys.argv[2:]
library = Library(h100_8())
library.install()
def change():
    library.gpus[4].hanging = {"nvmlDeviceGetEccMode"} if (folder / "hangs").exists() else set()
    library.gpus[6].lost = (folder / "lost").exists()
def watch():
    while True:
        change()
        time.sleep(0.005)
change()
threading.Thread(target=watch, daemon=True).start()
known = [gpu.address for gpu in library.gpus]
follow(0.05, folder / "none", threading.Event(), say, folder / "bus", known, slow_s=0.2, left_out=left_out)
"""
HUNG_AT, LOST = "0000:9d:00.0", "0000:d1:00.0"


class OfGpus(Supervisor):
    """Processes over simulated GPUs in which GPU 4 hangs, and GPU 6 is lost, while the folder says so."""

    def __init__(self, folder: Path) -> None:
        super().__init__({"nvml": []}, 1.5, (), [])
        self._folder = folder

    def _command(self, name: str, left_out: Collection[str]) -> list[str]:
        return [sys.executable, "-c", SIMULATED, str(self._folder), *left_out]


class Agent:
    """A daemon over the socket of a container of sources that can be begun anew."""

    def __init__(self, folder: Path) -> None:
        config = Config.model_validate({"policy": {"silent_s": 0.6}})
        self.folder, self.statuses = folder, list[Status]()
        self.daemon = Daemon(config, "n", None, lambda *_, **__: None, Remote(folder / "s", ("nvml",)))
        self.daemon.judged = lambda verdict: self.statuses.append(verdict.status)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self.daemon.run, args=(self._stop,))]
        self.container()
        self._threads[0].start()

    def container(self) -> None:
        self._over = threading.Event()
        serving = Serving(self.folder / "s", OfGpus(self.folder), lambda *_, **__: None)
        self._threads.append(threading.Thread(target=serving.run, args=(self._over,)))
        self._threads[-1].start()

    def restart(self) -> None:
        self._over.set()
        self._threads[-1].join(LATEST_S)
        self.container()

    def end(self) -> None:
        self._stop.set()
        self._over.set()
        for thread in self._threads:
            thread.join(LATEST_S)

    @property
    def faults(self) -> set[str]:
        return {f.finding.id for f in self.daemon.snapshot.verdict.faults} if self.daemon.snapshot else set()


def test_in_two_containers_the_others_are_read_and_the_status_goes_one_way(folder: Path) -> None:
    agent = Agent(folder)
    try:
        until(lambda: agent.statuses and agent.statuses[-1] is Status.HEALTHY)
        (folder / "hangs").touch()
        until(lambda: agent.statuses[-1] is Status.UNKNOWN)
        unknown = len(agent.statuses)
        until(lambda: f"driver-hung@{HUNG_AT}" in agent.faults)
        degraded = len(agent.statuses)
        agent.restart()
        (folder / "lost").touch()
        until(lambda: f"gpu-lost@{LOST}" in agent.faults)
        assert f"driver-hung@{HUNG_AT}" in agent.faults
        assert Status.HEALTHY not in agent.statuses[unknown:]
        assert set(agent.statuses[degraded:]) == {Status.DEGRADED, Status.UNHEALTHY}
    finally:
        agent.end()


def test_in_one_container_what_came_back_is_read_by_a_process_that_leaves_nothing_out(folder: Path) -> None:
    one = OfGpus(folder)
    seen, due = list[Observation](), time.monotonic() + 90
    one.want(frozenset({"nvml"}), one._known)

    def hear(wanted: Callable[[Observation], bool]) -> None:
        while not any(map(wanted, said := one.turn(0.05))):
            seen.extend(said)
            assert time.monotonic() < due
        seen.extend(said)

    try:
        (folder / "hangs").touch()
        hear(lambda o: o.value == Failure.HUNG and "ecc_mode" in o.raw)
        hear(lambda o: o.signal is Signal.ALIVE)
        last = seen[-20:]
        assert {o.pci for o in last if o.signal is Signal.READING} >= {LOST, "0000:1b:00.0"}
        assert HUNG_AT not in {o.pci for o in last if o.signal is Signal.READING}
        (folder / "hangs").unlink()
        one._sources["nvml"]._left_out[HUNG_AT] = time.monotonic()
        hear(lambda o: o.signal is Signal.READING and o.pci == HUNG_AT)
        assert one.statuses[0].starts >= 3, "more where a busy machine held one up for so long that it seemed to hang"
    finally:
        one.close()
        until(lambda: one.ended(["nvml"]))
