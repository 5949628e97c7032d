"""Whatever one GPU answers, over a library in C in the form of each driver's branch: the promise, and what is said."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterable, Iterator
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


# Only before Ampere is it asked where NVLinks lead.
PEERS = {f"nvmlDeviceGetNvLink{what}" for what in ("State", "RemoteDeviceType", "RemotePciInfo_v2")}


def odd_answers(call: str, gpu: int, codes: Iterable[int]) -> Iterator[str]:
    """The lines by which one GPU answers a call oddly, each alone."""
    yield from (f"answer {call} {gpu} {code}" for code in codes)
    yield f"numbers {call} {gpu} {ALL_ONES}"
    yield f"numbers {call} {gpu} {2**31}"
    yield f"numbers {call} {gpu} 0"
    yield from (text(call, gpu, odd) for odd in TEXTS)
    if call == "nvmlDeviceGetFieldValues":
        yield from (f"field * {gpu} - {code}" for code in CODES)
        yield f"field * {gpu} 99 1"  # of a type that nobody knows
        yield f"field * {gpu} 0 {ALL_ONES}"  # a double that is no number
        yield f"field * {gpu} 3 -1"


@pytest.mark.parametrize("odd", [0, 1], ids=["h100", "v100"])
@pytest.mark.parametrize("branch", BRANCHES)
def test_nothing_that_one_gpu_answers_changes_what_is_said_of_another(
    loaded: Callable[[int], Driver], branch: int, odd: int, record_property: Callable[[str, object], None]
) -> None:
    driver = loaded(branch)
    driver.answers(script(BOARDS, branch=branch))
    usual = seen(opened(*ADDRESSES))[0]
    right = {ADDRESSES[1 - odd]: usual[ADDRESSES[1 - odd]]}
    calls = sorted({*OF_A_GPU, "nvmlDeviceGetHandleByIndex_v2"} - lacking(branch))
    codes = CODES if branch != BRANCHES[-1] else (*range(1, 32), 999, -1)  # each that NVML has, in the newest
    cases, felt = 0, set[str]()
    for call in calls:
        for line in odd_answers(call, odd, codes):
            driver.answers(script(BOARDS, line, branch=branch))
            read = others_are_read_as_ever(opened(*ADDRESSES), right, line)
            if read.get(ADDRESSES[odd]) != usual[ADDRESSES[odd]]:
                felt.add(call)
            cases += 1
    unasked = EVENTS | {older for call, older in OLDER.items() if call not in lacking(branch)}
    unasked |= PEERS if odd == 0 else set()
    assert set(calls) - felt == unasked, "what is not asked proves nothing"
    record_property("counts", counts(f"in C, R{branch}, GPU {odd} of 2", len(calls), cases))


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


def said_by_a_source(folder: Path) -> tuple[int, list[Observation]]:
    """Its exit code, and what it says until its third word on whether it can see."""
    said, stop = list[Observation](), threading.Event()

    def say(observation: Observation) -> None:
        said.append(observation)
        if len([o for o in said if o.signal in (Signal.ALIVE, Signal.FAILED)]) == 3:
            stop.set()

    return follow(0.001, folder / "none", stop, say, folder), said


@pytest.mark.parametrize("call", SYSTEM)
def test_a_library_without_a_call_of_its_own_ends_no_source(
    loaded: Callable[[], Driver], tmp_path: Path, call: str
) -> None:
    driver = loaded()
    driver.answers(script(BOARDS))
    nv.nvmlLib = Without(str(driver.library))
    nv.nvmlLib.absent = call
    code, said = said_by_a_source(tmp_path)
    assert code == 0
    if call == "nvmlDeviceGetHandleByIndex_v2":
        assert said[0].values["unopened"] == "0:13,1:13"
    elif call in ("nvmlInitWithFlags", "nvmlDeviceGetCount_v2"):
        assert {o.signal for o in said} == {Signal.FAILED}
    else:
        assert {o.signal for o in said} == {Signal.READING, Signal.ALIVE}


def test_whatever_the_library_answers_of_itself_ends_no_source(loaded: Callable[[], Driver], tmp_path: Path) -> None:
    driver, renewed = loaded(), set[tuple[str, int]]()
    for call in SYSTEM:
        for code in (*CODES, 1, 9, 12, 18):
            driver.answers(script(BOARDS, f"answer {call} * {code}"))
            ended, said = said_by_a_source(tmp_path)
            if ended:
                renewed.add((call, code))
            assert said[-1].signal in (Signal.ALIVE, Signal.FAILED), (call, code)
    assert {code for _, code in renewed} == {12, 18}, "only a new process can load another library"
    for count in (0, 2**31, 2**32 - 1):
        driver.answers(script(BOARDS, f"numbers nvmlDeviceGetCount_v2 * {count}"))
        ended, said = said_by_a_source(tmp_path)
        assert (ended, said[-1].values["gpu_count"]) == (0, min(count, 2))
        assert all(len(o.to_json()) < 16 * 1024 for o in said)
