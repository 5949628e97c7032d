"""Whatever one GPU answers, over a library in C in the form of each driver's branch: the promise, and what is said."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pynvml as nv
import pytest

from agent.model.observation import Missing, Observation, Signal
from agent.sources.nvml.session import follow
from tests.nvml.boards import ADDRESSES, A, B, h100, v100
from tests.nvml.drivers import BRANCHES, OLDER, lacking
from tests.nvml.promise import CODES, counts, opened, others_are_read_as_ever, seen
from tests.nvml.standin import OF_A_GPU, SYSTEM, Driver, script, text

BOARDS = {0: h100(A), 1: v100(B, "00000000:52:00.0")}
TEXTS = (b"", b"\xff\xfe\x80", b"x" * 400, b"a\tb\x1b[2J", "GPU-\u2028\u202e".encode())
ALL_ONES = 2**64 - 1
EVENTS = {"nvmlDeviceRegisterEvents", "nvmlDeviceGetSupportedEventTypes"}  # whose failure costs events, and no reading


def odd_answers(call: str, gpu: int) -> Iterator[str]:
    """The lines by which one GPU answers a call oddly, each alone."""
    yield from (f"answer {call} {gpu} {code}" for code in CODES)
    yield f"numbers {call} {gpu} {ALL_ONES}"
    yield f"numbers {call} {gpu} {2**31}"
    yield f"numbers {call} {gpu} 0"
    yield from (text(call, gpu, odd) for odd in TEXTS)
    if call == "nvmlDeviceGetFieldValues":
        yield from (f"field * {gpu} - {code}" for code in CODES)
        yield f"field * {gpu} 99 1"  # of a type that nobody knows
        yield f"field * {gpu} 0 {ALL_ONES}"  # a double that is no number
        yield f"field * {gpu} 3 -1"


@pytest.mark.parametrize("branch", BRANCHES)
def test_nothing_that_one_gpu_answers_changes_what_is_said_of_another(
    loaded: Callable[[int], Driver], branch: int, record_property: Callable[[str, object], None]
) -> None:
    driver = loaded(branch)
    calls = sorted({*OF_A_GPU, "nvmlDeviceGetHandleByIndex_v2"} - lacking(branch))
    cases, felt = 0, set[str]()
    for odd, other in ((0, 1), (1, 0)):
        driver.answers(script(BOARDS, branch=branch))
        usual = seen(opened(*ADDRESSES))[0]
        right = {ADDRESSES[other]: usual[ADDRESSES[other]]}
        for call in calls:
            for line in odd_answers(call, odd):
                driver.answers(script(BOARDS, line, branch=branch))
                read = others_are_read_as_ever(opened(*ADDRESSES), right, line)
                if read.get(ADDRESSES[odd]) != usual[ADDRESSES[odd]]:
                    felt.add(call)
                cases += 1
    not_asked = {older for call, older in OLDER.items() if call not in lacking(branch)}
    assert set(calls) - felt == not_asked | EVENTS, "what is not asked proves nothing"
    record_property("counts", counts(f"in C, R{branch}, each of 2 GPUs", len(calls), cases))


class Without(ctypes.CDLL):
    """The library without one of its calls."""

    absent = ""

    def __getattr__(self, name: str) -> Any:
        if name == self.absent:
            raise AttributeError(name)
        return super().__getattr__(name)


@pytest.mark.parametrize("branch", BRANCHES)
def test_a_driver_without_a_call_has_every_other_value(loaded: Callable[[int], Driver], branch: int) -> None:
    driver = loaded(branch)
    driver.answers(script(BOARDS, branch=branch))
    usual = seen(opened(*ADDRESSES))[0]
    for call in sorted({*OF_A_GPU} - lacking(branch)):
        nv.nvmlLib = Without(str(driver.library))
        nv.nvmlLib.absent = call
        nv._nvmlGetFunctionPointer_cache.clear()
        read, told = seen(opened(*ADDRESSES))
        if call == "nvmlDeviceGetPciInfo_v3":
            assert told[-1].values["unopened"] == "0:13,1:13"
            continue
        for pci, values in usual.items():
            changed = {name for name, value in values.items() if read[pci].get(name) != value}
            assert all(isinstance(read[pci].get(name), Missing | None) for name in changed), (call, changed)
            assert call == "nvmlDeviceGetFieldValues" or len(changed) <= 4, (call, changed)


@pytest.mark.parametrize("call", SYSTEM)
def test_a_library_without_a_call_of_its_own_ends_no_source(
    loaded: Callable[[int], Driver], tmp_path: Path, call: str
) -> None:
    driver = loaded(BRANCHES[-1])
    driver.answers(script(BOARDS))
    nv.nvmlLib = Without(str(driver.library))
    nv.nvmlLib.absent = call
    said, stop = list[Observation](), threading.Event()

    def say(observation: Observation) -> None:
        said.append(observation)
        if len([o for o in said if o.signal in (Signal.ALIVE, Signal.FAILED)]) == 3:
            stop.set()

    assert follow(0.01, tmp_path / "none", stop, say, tmp_path) == 0
    without_it = {"nvmlInitWithFlags", "nvmlDeviceGetCount_v2"}
    assert {o.signal for o in said} == ({Signal.FAILED} if call in without_it else {Signal.READING, Signal.ALIVE}) or (
        call == "nvmlDeviceGetHandleByIndex_v2" and said[0].values["unopened"] == "0:13,1:13"
    )
