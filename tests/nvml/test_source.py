"""The real source's process over a library in C, found by dlopen as NVIDIA's is."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from agent.model.observation import Failure, Missing, Observation, Signal
from tests.nvml.boards import ADDRESSES, A, B, h100
from tests.nvml.standin import Driver, built, script, text

BOARDS = {0: h100(A), 1: h100(B)}
XID = 8  # the type of an event


def of(gpu: int, kind: Signal = Signal.READING) -> tuple[Signal, str]:
    return kind, ADDRESSES[gpu]


def key(seen: Observation) -> tuple[Signal, str]:
    return seen.signal, seen.pci


def test_an_event_comes_at_once_with_that_gpus_reading(driver: Driver) -> None:
    driver.answers(script(BOARDS))
    with driver.source(poll_s=60) as source:
        first = source.until(lambda seen: seen.signal is Signal.ALIVE)
        assert (first.values["driver_version"], first.values["gpu_count"]) == ("590.44.01", 2)
        driver.answers(script(BOARDS, f"event 1 1 {XID} 79", "field 230 1 1 2"))
        xid = source.until(lambda seen: seen.signal is Signal.XID)
        assert (xid.pci, xid.value) == (ADDRESSES[1], 79)
        assert source.until(lambda seen: key(seen) == of(1)).values["recovery_action"] == 2


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS])
def test_a_crash_in_the_library_costs_nothing_that_was_read_before_it(driver: Driver, number: signal.Signals) -> None:
    driver.answers(script(BOARDS, f"crash nvmlDeviceGetMigMode 1 {number.value}"))
    with driver.source() as source:
        source.until(lambda seen: key(seen) == of(0))
        assert source.ended() == -number


def test_a_call_that_hangs_in_c_is_named_with_its_gpu_and_read_again_when_it_returns(driver: Driver) -> None:
    driver.answers(script(BOARDS, "hang nvmlDeviceGetPcieReplayCounter 1"))
    with driver.source() as source:
        hung = source.until(lambda seen: seen.value == Failure.HUNG)
        assert f"reading pcie_replays of GPU {ADDRESSES[1]}" in hung.raw
        driver.answers(script(BOARDS))
        assert source.until(lambda seen: key(seen) == of(1)).values["pcie_replays"] == 0


def test_calls_that_take_their_time_in_c_are_slow_and_no_failure(driver: Driver) -> None:
    driver.answers(script(BOARDS, "slow * * 5"))
    with driver.source() as source:
        told = source.polls(2)
        assert not [seen for seen in told if seen.signal is Signal.FAILED]
        assert float(str(told[-1].values["poll_ms"])) > 2 * 30 * 5


def test_versions_that_are_no_text_end_no_source(driver: Driver) -> None:
    for odd in (b"", b"\xff\xfe", b"\x1b[2J"):
        lines = [text(f"nvmlSystemGet{which}Version", "*", odd) for which in ("Driver", "NVML")]
        driver.answers(script(BOARDS, *lines))
        with driver.source() as source:
            alive = source.polls(1)[-1]
            assert {alive.values[name] for name in ("driver_version", "nvml_version")} == {Missing.UNREADABLE}


def test_calls_that_a_library_really_lacks_are_unsupported(tmp_path: Path) -> None:
    """Not by a stand-in's word: the linker leaves them out."""
    gone = ("nvmlDeviceGetUUID", "nvmlEventSetCreate", "nvmlErrorString", "nvmlDeviceGetFieldValues")
    driver = Driver(built(tmp_path / "library", without=gone), tmp_path)
    driver.answers(script(BOARDS))
    with driver.source() as source:
        read = source.until(lambda seen: key(seen) == of(1))
        assert read.values["uuid"] is read.values["recovery_action"] is Missing.UNSUPPORTED
        assert read.values["temperature_c"] == 41
        assert source.polls(2)[-1].signal is Signal.ALIVE
