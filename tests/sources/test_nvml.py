"""NVML through the real pynvml over simulated GPUs: facts told apart, one sick GPU never hides the others."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pynvml as nv
import pytest

from agent.model import Failure, Missing, Observation, Signal
from agent.sources.nvml import Nvml, follow
from agent.sources.simulated_library import Library, h100_8


@pytest.fixture
def library() -> Iterator[Library]:
    made = Library(h100_8())
    made.install()
    yield made
    nv.nvmlLib = None
    nv._nvmlGetFunctionPointer_cache.clear()


def poll(session: Nvml) -> dict[str, Observation]:
    return {o.pci or "node": o for o in session.poll()}


def test_a_poll_reads_every_gpu_and_ends_with_a_heartbeat(library: Library) -> None:
    seen = list(Nvml().poll())
    assert [o.signal for o in seen] == [Signal.READING] * 8 + [Signal.ALIVE]
    assert (seen[-1].values["gpu_count"], seen[-1].values["driver_version"]) == (8, library.driver)
    first = seen[0].values
    assert (seen[0].pci, first["uuid"], first["temperature_c"]) == ("0000:1b:00.0", library.gpus[0].uuid, 34)
    assert (first["slowdown_tlimit_c"], first["recovery_action"], first["margin_c"]) == (-2, 0, 53)


def test_unsupported_unreadable_and_zero_are_three_things(library: Library) -> None:
    library.gpus[0].unsupported = frozenset({"nvmlDeviceGetRemappedRows", "nvmlDeviceGetMarginTemperature"})
    library.gpus[0].unreadable = frozenset({"nvmlDeviceGetEccMode", "nvmlDeviceGetFieldValues"})
    values = poll(Nvml())["0000:1b:00.0"].values
    assert values["remapped_rows_failure"] is values["margin_c"] is Missing.UNSUPPORTED
    assert values["ecc_mode"] is values["recovery_action"] is Missing.UNREADABLE
    assert values["pcie_replays"] == 0


def test_what_is_unsupported_is_not_asked_again_and_what_was_unreadable_is(library: Library) -> None:
    gpu, session = library.gpus[0], Nvml()
    gpu.unsupported, gpu.unreadable = frozenset({"nvmlDeviceGetEccMode"}), frozenset({"nvmlDeviceGetMigMode"})
    poll(session)
    gpu.unsupported = gpu.unreadable = frozenset()
    values = poll(session)["0000:1b:00.0"].values
    assert (values["ecc_mode"], values["mig_mode"]) == (Missing.UNSUPPORTED, 0)


@pytest.mark.parametrize("known_before", [True, False])
def test_a_lost_gpu_is_a_fact_and_the_others_are_still_read(library: Library, known_before: bool) -> None:
    session = Nvml()
    if known_before:
        poll(session)
    library.gpus[3].lost = True
    seen = poll(session)
    assert seen["0000:61:00.0"].signal is Signal.LOST
    assert sum(o.signal is Signal.READING for o in seen.values()) == 7


def test_a_gpu_that_requires_a_reset_is_told_apart_from_a_lost_one(library: Library) -> None:
    library.gpus[3].reset_required = True
    assert poll(Nvml())["0000:61:00.0"].signal is Signal.RESET_REQUIRED


def test_an_xid_event_arrives_at_once_and_the_recovery_action_is_read_again(library: Library) -> None:
    session = Nvml()
    list(session.poll())
    gpu = library.gpus[2]

    def break_it() -> None:
        gpu.recovery_action = 1
        library.event(gpu, nv.nvmlEventTypeXidCriticalError, 31)

    threading.Timer(0.05, break_it).start()
    began = time.monotonic()
    xid, reading = session.events(5.0, time.sleep)
    assert time.monotonic() - began < 1.0
    assert (xid.signal, xid.value, xid.pci) == (Signal.XID, 31, "0000:52:00.0")
    assert (reading.pci, reading.values["recovery_action"]) == ("0000:52:00.0", 1)


def test_no_event_is_no_observation(library: Library) -> None:
    session = Nvml()
    list(session.poll())
    assert list(session.events(0.01, time.sleep)) == []


@pytest.mark.parametrize(
    ("error", "failure"),
    [(9, Failure.DRIVER_NOT_LOADED), (12, Failure.NO_LIBRARY), (18, Failure.LIBRARY_MISMATCH),
     (4, Failure.NO_PERMISSION), (999, Failure.UNREADABLE)],
)  # fmt: skip
def test_each_way_of_not_seeing_is_told_apart(library: Library, tmp_path: Path, error: int, failure: Failure) -> None:
    library.init_error = error
    seen: list[Observation] = []
    stop = threading.Event()

    def say(observation: Observation) -> None:
        seen.append(observation)
        if len(seen) == 2:
            stop.set()

    code = follow(0.01, tmp_path / "boot_id", stop, say)
    assert {(o.signal, o.value) for o in seen} == {(Signal.FAILED, failure)}
    renew = failure in (Failure.NO_LIBRARY, Failure.LIBRARY_MISMATCH)
    assert (code, len(seen)) == ((75, 1) if renew else (0, 2)), "only a new process can load another library"


def test_a_driver_that_comes_back_is_read_again(library: Library, tmp_path: Path) -> None:
    library.init_error = 9
    stop, seen = threading.Event(), []

    def say(observation: Observation) -> None:
        seen.append(observation.signal)
        library.init_error = 0
        if observation.signal is Signal.ALIVE:
            stop.set()

    follow(0.01, tmp_path / "boot_id", stop, say)
    assert (seen[0], seen[-1]) == (Signal.FAILED, Signal.ALIVE)


def test_without_the_library_the_program_says_so_and_ends_for_a_new_one() -> None:
    """A machine with a driver reads its GPUs instead; either way a fact comes and no traceback."""
    command = [sys.executable, "-m", "agent.sources.nvml", "--poll-s", "0.1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        process.terminate()
        assert b'"source":"nvml"' in line
        assert process.stderr.read() == b""
