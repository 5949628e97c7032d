"""How soon the door answers a job, beside a healthy agent and beside one that hangs."""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from pathlib import Path

from agent.status.fitness import Door, State, asked

ASKED = 1000


def door() -> None:
    print(f"a job asks at the door, {ASKED} times")
    well: State = {"status": "healthy", "faults": (), "blind": (), "sources": [{"name": "nvml", "age_s": 1}]}
    for name, hangs in (("a healthy agent", False), ("an agent that hangs", True)):
        over = threading.Event()

        def ask(hangs: bool = hangs, over: threading.Event = over) -> State | None:
            return None if hangs and over.wait() else well

        with tempfile.TemporaryDirectory() as folder:
            one = Door(Path(folder) / "check.sock", ask)
            threading.Thread(target=one.run, daemon=True).start()
            while not hangs and not asked(Path(folder) / "check.sock").fit:
                time.sleep(0.01)
            took = sorted(_took_s(Path(folder) / "check.sock", hangs) for _ in range(ASKED))
            over.set()
            one.stop()
        print(f"  {name:21} p50 {statistics.median(took) * 1000:5.1f} ms  p99 {took[ASKED * 99 // 100] * 1000:5.1f} ms")


def _took_s(path: Path, hangs: bool) -> float:
    began = time.monotonic()
    if asked(path).fit is hangs:
        raise RuntimeError(f"the door said the wrong thing beside an agent that {'hangs' if hangs else 'is well'}")
    return time.monotonic() - began


if __name__ == "__main__":
    door()
