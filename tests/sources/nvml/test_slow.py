"""Calls that take long and come back: each GPU's line comes when it was read, and nothing hangs."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pynvml as nv
import pytest

from agent.model.observation import Observation, Signal
from agent.simulation.gpu import v100_8
from agent.simulation.library import Library
from agent.sources.nvml.session import Nvml, follow
from tests.waiting import LATEST_S, until


@pytest.fixture
def library() -> Iterator[Library]:
    made = Library(v100_8()[:2])  # whose peers alone take fifty calls
    made.install()
    yield made
    nv.nvmlLib = None
    nv._nvmlGetFunctionPointer_cache.clear()


def test_a_slow_poll_says_so_and_gives_each_gpu_its_line_and_no_call_hangs(library: Library, tmp_path: Path) -> None:
    library.call_s = 0.005
    said: list[Observation] = []
    stop = threading.Event()
    options = {"slow_s": 0.15, "devices": tmp_path / "none"}
    reader = threading.Thread(target=follow, args=(0.05, tmp_path / "none", stop, said.append), kwargs=options)
    reader.start()
    try:
        until(lambda: any(o.signal is Signal.ALIVE for o in said))
    finally:
        stop.set()
        reader.join(LATEST_S)
    kinds = [o.signal for o in said]
    assert set(kinds) == {Signal.SLOW, Signal.READING, Signal.ALIVE}
    assert kinds.index(Signal.READING) < len(kinds) - 2 - kinds[::-1].index(Signal.READING), "GPU by GPU"
    elapsed = [float(str(o.value)) for o in said if o.signal is Signal.SLOW]
    assert elapsed == sorted(elapsed)
    assert elapsed[0] >= 0.1


def test_what_can_wait_is_read_with_later_polls_one_call_at_a_time(library: Library) -> None:
    library.gpus = library.gpus[:1]
    library.call_s = 0.04
    session = Nvml()
    first = next(session.poll()).values
    assert {"uuid", "name", "temperature_c", "recovery_action", "ecc_uncorrected_volatile", "serial"} <= first.keys()
    assert "nvlink_peers" not in first
    library.call_s = 0.0
    later = next(session.poll()).values
    assert {"pcie_max_width", "temperature_slowdown_c", "nvlink_peers", "nvlink_active"} <= later.keys()


def test_events_are_heard_between_polls_that_take_longer_than_their_rhythm(library: Library, tmp_path: Path) -> None:
    library.call_s = 0.002
    said: list[Observation] = []
    stop = threading.Event()
    options = {"devices": tmp_path / "none"}
    reader = threading.Thread(target=follow, args=(0.01, tmp_path / "none", stop, said.append), kwargs=options)
    reader.start()
    try:
        until(lambda: any(o.signal is Signal.ALIVE for o in said))
        due = time.monotonic() + 10
        while not any(o.signal is Signal.XID for o in said):
            library.event(library.gpus[0], nv.nvmlEventTypeXidCriticalError, 31)
            assert time.monotonic() < due
            time.sleep(0.02)
    finally:
        stop.set()
        reader.join(LATEST_S)
