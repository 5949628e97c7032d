"""What the flight recorder takes: on a quiet node of eight GPUs, and in a storm of lines that hardly compress."""

from __future__ import annotations

import random
import time
import tracemalloc
from pathlib import Path

from agent.config.settings import Config
from agent.diagnosis.judge import Orders
from agent.model.fault import Status, Verdict
from agent.model.observation import Observation, Signal
from agent.model.remedy import Remedy
from agent.recording.flight import KEPT_S, FlightRecorder
from tests.bench.judging import poll
from tests.bench.usage import own_rss_mib

_LINE = 200  # bytes of a storm's
_QUIET = Verdict(0.0, Status.HEALTHY, Remedy.NONE)


def flight() -> None:
    """Print both."""
    before, cpu = own_rss_mib(), time.process_time()
    recorder = FlightRecorder(Path("/nowhere"), Config(), "n", ("nvml",))
    for number in range(int(2 * KEPT_S / 5)):
        recorder.judged(5.0 * number, 5.0 * number, poll(number, 5.0 * number), Orders(), _QUIET)
    share = 100 * (time.process_time() - cpu) / (2 * KEPT_S)
    print("flight recorder, 8 GPUs, 5 s poll, a quarter of an hour kept")
    print(
        f"  quiet                         holds {recorder.segments.size / 2**20:.2f} MiB  "
        f"RSS {before:.1f} → {own_rss_mib():.1f} MiB  CPU {share:.3f} % of a core"
    )
    print(f"  1,000 different lines a second  {stormed_mib(1000, 60):.2f} MiB at most, 2 allowed", flush=True)


def stormed_mib(lines: int, seconds: int) -> float:
    """The most memory that a recorder took: of so many different lines a second, and when it is written down."""
    chance = random.Random(1)
    words = [chance.randbytes(_LINE // 2).hex() for _ in range(4000)]
    tracemalloc.start()
    try:
        recorder = FlightRecorder(Path("/nowhere"), Config(), "n", ("kmsg",))
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        for second in range(seconds):
            said = [
                Observation(second, "kmsg", Signal.XID, f"0000:{number % 256:02x}:00.0", 13, raw=chance.choice(words))
                for number in range(lines)
            ]
            recorder.judged(second, second, said, Orders(), _QUIET)
        whole = recorder.segments.whole()
        assert whole
        return (tracemalloc.get_traced_memory()[1] - before) / 2**20
    finally:
        tracemalloc.stop()
