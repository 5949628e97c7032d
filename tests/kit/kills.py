"""``make kit-kills``: a training of one rank, or of four, is killed -9 again and again, in the midst of saving.

After each kill it is started anew, and must go on from a step that was saved, no older than the last of which any rank
said so, all ranks from the same. With ``--ranks 4`` it takes a Python with PyTorch; ``--program tests.kit.directories``
has the folder's part of that alone. Lives are forked: what was imported stays, and a life takes a second.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import logging
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

KIT = Path(__file__).parents[2] / "daemonset" / "kit"
_LATEST_S = 600.0  # where many share the machine


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def place(rank: int, ranks: int, port: int) -> dict[str, str]:
    """What torchrun tells each rank."""
    names = {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": str(ranks)}
    meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    return {**names, **meet, "OMP_NUM_THREADS": "1"}


class Life:
    """One life of the training: a process for each rank, as in a pod of its own, and what it says."""

    def __init__(self, folder: Path, number: int, ranks: int, program: str, arguments: list[str]) -> None:
        port = free_port()
        self.logs = [folder / f"{number}-{rank}.log" for rank in range(ranks)]
        self.processes = [self._fork(rank, ranks, port, program, arguments) for rank in range(ranks)]

    def _fork(self, rank: int, ranks: int, port: int, program: str, arguments: list[str]) -> int:
        self.logs[rank].touch()
        if process := os.fork():
            return process
        code = 1
        try:
            log = os.open(self.logs[rank], os.O_WRONLY)
            for stream in (1, 2):
                os.dup2(log, stream)
            sys.stdout, sys.stderr = (open(stream, "w", closefd=False) for stream in (1, 2))  # noqa: SIM115
            logging.getLogger().handlers.clear()  # of whoever forked: each life has its own
            os.environ.update(place(rank, ranks, port))
            sys.argv = [program, *arguments]
            code = importlib.import_module(program).main()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def said(self, word: str) -> list[list[int]]:
        """The steps after this word, rank by rank."""
        return [[int(step) for step in re.findall(rf"{word} step (\d+)", log.read_text())] for log in self.logs]

    def until(self, word: str) -> None:
        """Until all ranks have said it."""
        end = time.monotonic() + _LATEST_S
        while not all(word in log.read_text() for log in self.logs):
            gone = [process for process in self.processes if os.waitpid(process, os.WNOHANG)[0]]
            if gone or time.monotonic() > end:
                self.processes = [process for process in self.processes if process not in gone]
                raise AssertionError("\n".join(log.read_text()[-2000:] for log in self.logs))
            time.sleep(0.01)

    def until_saved(self) -> float:
        """Until rank 0 has saved once more, and how long that took."""
        began, already = time.monotonic(), self.logs[0].read_text().count("saved step")
        while self.logs[0].read_text().count("saved step") == already:
            assert time.monotonic() < began + _LATEST_S, self.logs[0].read_text()[-2000:]
            time.sleep(0.001)
        return time.monotonic() - began

    def wait(self) -> list[int]:
        """Exit codes, rank by rank."""
        codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in self.processes]
        self.processes = []
        return codes

    def kill(self, victims: list[int]) -> None:
        """These ranks at once, the others a moment later: without their peers they end, or hang."""
        for rank in victims:
            os.kill(self.processes[rank], signal.SIGKILL)
        time.sleep(0.05)
        self.end()

    def end(self) -> None:
        for process in self.processes:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
        self.processes = []


def kills(number: int, ranks: int, program: str, seed: int, folder: Path) -> tuple[int, list[int]]:
    """How many lives restored, and from which steps; AssertionError names the life that broke a promise."""
    chance, saved, restores, steps_of = random.Random(seed), -1, 0, set[int]()
    arguments = [f"--folder={folder / 'run'}", "--interval-s=0.02", "--width=16", "--step-s=0.002", "--port=0"]
    arguments += [] if ranks == 1 else ["--parallel=fsdp"]
    for life in range(number + 1):
        running = Life(folder, life, ranks, program, arguments)
        try:
            takes_s = 0.5
            if life == number or chance.random() > 0.2:  # some are killed while they restore
                running.until("training from step")
                if chance.random() < 0.5:  # and some once they have got on: four ranks take a second for a save
                    takes_s = running.until_saved()
            time.sleep(chance.random() * takes_s)
        finally:
            everybody = list(range(len(running.processes)))
            running.kill(everybody if chance.random() < 0.3 else [chance.choice(everybody)])
        began = {step for steps in running.said("restored") for step in steps}
        assert len(began) <= 1, f"life {life}: ranks went on from steps {sorted(began)}"
        assert saved < 0 or not any(running.said("saved")) or began, f"life {life} began anew"
        assert all(step >= saved for step in began), f"life {life} went on from {began}, and step {saved} was saved"
        restores += bool(began)
        steps_of |= began
        saved = max([saved, *began, *(step for steps in running.said("saved") for step in steps)])
        for log in running.logs:
            log.unlink()
        if life and life % 50 == 0:
            print(f"{life} kills, {restores} restores, step {saved}", flush=True)
    assert number < 10 or len(steps_of) > number / 10, (
        f"restored from steps {sorted(steps_of)} alone: that proves little"
    )
    return restores, sorted(steps_of)


def warm(program: str, folder: Path) -> None:
    """Import here what a life imports only as it runs (PyTorch: 300 modules), so that none has to again.

    A program of its own tells the names: who computes with many threads and is forked then may hang.
    """
    code = f"import sys, {program}; {program}.main(); print('modules', *sys.modules)"
    own = [sys.executable, "-c", code, f"--folder={folder}", "--steps=2", "--width=16", "--port=0"]
    environment = {**os.environ, **place(0, 1, free_port()), "PYTHONPATH": str(KIT)}
    done = subprocess.run(own, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=_LATEST_S)
    for name in done.stdout.rpartition("modules ")[2].split():
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--program", help="train for one rank, train_ranks for more")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    sys.path.insert(0, str(KIT))
    program = options.program or ("train" if options.ranks == 1 else "train_ranks")
    importlib.import_module(program)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="gpu-kit-kills-") as folder:
        if program == "train_ranks":
            warm(program, Path(folder) / "warm")
        restores, steps = kills(options.kills, options.ranks, program, options.seed, Path(folder))
    seconds = time.monotonic() - began
    print(f"{options.kills} kills -9 over {options.ranks} rank(s) in {seconds:.0f} s: {restores} restores, 0 broken,")
    print(f"every rank at one step each time; from {len(steps)} different steps, the last {max(steps, default=0)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
