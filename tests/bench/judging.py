"""What judging costs: a day's replay, a driver call that hangs, a storm of kernel lines."""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from agent.config.settings import Config
from agent.diagnosis.judge import Orders
from agent.model.fault import Status, Verdict
from agent.model.observation import Missing, Observation, Signal, Value
from agent.model.remedy import Remedy
from agent.recording.recording import Recorder
from agent.runtime.daemon import Daemon, serve
from agent.simulation.simulated import inject
from agent.sources.process.command_lines import supervisor
from tests.bench.usage import own_rss_mib

_POLL_S, _DAY_S, _GPUS = 5.0, 86400.0, 8
_STORM_S, _LINES_A_S = 10, 20_000


def judging() -> None:
    """Print the three."""
    with tempfile.TemporaryDirectory(prefix="gha-") as name:
        day(Path(name))
        hang(Path(name) / "hang")
        storm(Path(name) / "storm")


def day(folder: Path) -> None:
    """A day of eight GPUs at a poll of 5 s, whose heat and power move with each reading."""
    path = folder / "day"
    recorder = Recorder(path, Config(), "n", ("nvml",))
    verdict = Verdict(0.0, Status.HEALTHY, Remedy.NONE)
    for number in range(int(_DAY_S / _POLL_S)):
        now = number * _POLL_S
        recorder.judged(now, now, poll(number, now), Orders(), verdict)
    recorder.close()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "agent", "replay", str(path)], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"replay of a day, 8 GPUs, 5 s poll    {cpu_s:.1f} s of CPU", flush=True)


def poll(number: int, now: float) -> list[Observation]:
    """Of all GPUs."""
    beat: dict[str, Value] = {"gpu_count": _GPUS, "missing": ""}
    readings = (_reading(gpu, number, now) for gpu in range(_GPUS))
    return [*readings, Observation(now, "nvml", Signal.ALIVE, values=beat, boot_id="boot", arrived=now)]


def _reading(gpu: int, number: int, now: float) -> Observation:
    values: dict[str, Value] = {
        "uuid": f"GPU-{gpu}",
        "temperature_c": 45 + (number * 7 + gpu) % 5,
        "margin_c": 40 - (number * 7 + gpu) % 5,
        "power_w": 300.0 + number % 11,
        "energy_j": 1000.0 + number,
        "recovery_action": 0,
        "pcie_width": 16,
        "pcie_max_width": 16,
        "ecc_uncorrected_volatile": 0,
        "remapped_rows_pending": 0,
        "index": gpu,
        "retired_pages_pending": Missing.UNSUPPORTED,
    }
    return Observation(now, "nvml", Signal.READING, f"0000:{0x1B + gpu:02x}:00.0", values=values, arrived=now)


class Run:
    """A whole agent without a cluster, on simulated GPUs."""

    def __init__(self, folder: Path, poll_s: float) -> None:
        folder.mkdir()
        self.folder, self._stop = folder, threading.Event()
        config = Config.model_validate(
            {
                "poll_s": poll_s,
                "http": {"address": "127.0.0.1", "port": 0},
                "sources": {"simulated": {"scenario": "idle"}},
            }
        )
        self.daemon = Daemon(config, "n", None, lambda *_, **__: None, supervisor(config, folder))
        self._server = serve(config, self.daemon)
        self._thread = threading.Thread(target=self.daemon.run, args=(self._stop,))
        self._thread.start()
        self.until(lambda: self.status is Status.HEALTHY)

    @property
    def status(self) -> Status | None:
        shot = self.daemon.snapshot
        return shot.verdict.status if shot else None

    def until(self, true: Callable[[], object], timeout_s: float = 60.0) -> float:
        """Seconds until it was true."""
        began = time.monotonic()
        while not true():
            if time.monotonic() - began > timeout_s:
                raise RuntimeError("it did not come to that")
            time.sleep(0.002)
        return time.monotonic() - began

    @property
    def port(self) -> int:
        return self._server.port

    def fetch_s(self) -> float:
        began = time.monotonic()
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics") as answer:
            answer.read()
        return time.monotonic() - began

    def end(self) -> None:
        self._stop.set()
        self._thread.join(10)
        self._server.shutdown()


def hang(folder: Path) -> None:
    run = Run(folder, 2.0)
    inject(folder, {"gpu": 3, "hang": "nvmlDeviceGetEccMode"})
    took = run.until(
        lambda: run.daemon.snapshot and any("ecc_mode" in w for w in run.daemon.snapshot.verdict.blind_lines)
    )
    scrapes = [run.fetch_s() for _ in range(50)]
    print(f"a hung NVML call is named after      {took / 2.0:.2f} polls")
    print(f"  /metrics meanwhile                 {1000 * max(scrapes):.0f} ms at most, of {len(scrapes)}", flush=True)
    inject(folder, {"clear": True})
    run.end()


def storm(folder: Path) -> None:
    """Xids of ever other processes at 20,000 lines a second, and one lost GPU in between."""
    run = Run(folder, 1.0)
    before, found = own_rss_mib(), threading.Event()

    def write() -> None:
        with (folder / "kmsg").open("ab", buffering=0) as log:
            for second in range(_STORM_S):
                due = time.monotonic() + 1.0
                lines = [
                    f"3,{second * _LINES_A_S + n + 10},1,-;NVRM: Xid (PCI:0000:1b:00): 13, pid={n}, name=x\n"
                    for n in range(_LINES_A_S)
                ]
                if second == _STORM_S // 2:
                    lines[_LINES_A_S // 2] = f"3,{second * _LINES_A_S + 10_010},1,-;NVRM: Xid (PCI:0000:43:00): 79\n"
                    found.set()
                log.write("".join(lines).encode())
                time.sleep(max(0.0, due - time.monotonic()))

    writer = threading.Thread(target=write)
    writer.start()
    found.wait()
    took = run.until(lambda: run.status is Status.UNHEALTHY)
    writer.join()

    def counted() -> int:
        shot = run.daemon.snapshot
        return shot.xids.get(("0000:1b:00.0", 13), (0, 0.0))[0] if shot else 0

    run.until(lambda: counted() >= _STORM_S * _LINES_A_S - 1)
    print(
        f"a storm of {_LINES_A_S} Xid lines a second, {_STORM_S} s: {counted()} counted, the lost GPU in between "
        f"found after {took:.2f} s, RSS {before:.1f} → {own_rss_mib():.1f} MiB",
        flush=True,
    )
    run.end()


if __name__ == "__main__":
    judging()
