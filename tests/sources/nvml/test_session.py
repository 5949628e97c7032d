"""NVML through the real pynvml over simulated GPUs: facts told apart, one sick GPU never hides the others."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pynvml as nv
import pytest

from agent.model.observation import Failure, Missing, Observation, Signal
from agent.simulation.gpu import h100_8
from agent.simulation.library import Library
from agent.simulation.nvml_answers import SYMBOLS
from agent.sources.nvml.return_codes import failure
from agent.sources.nvml.session import Nvml, follow
from tests.waiting import LATEST_S, until

SIMULATED = """
import sys
from pathlib import Path
from agent.sources.nvml import session as nvml
from agent.simulation.gpu import h100_8
from agent.simulation.library import Library
Library(h100_8()).install()
sys.exit(nvml.run(float(sys.argv[1]), Path("/nonexistent")))
"""


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


def test_the_processes_on_a_gpu_are_told_by_pid(library: Library) -> None:
    library.gpus[0].processes.update({4711, 2**22})
    read = poll(Nvml())
    assert (read["0000:1b:00.0"].values["processes"], read["0000:43:00.0"].values["processes"]) == ("4711,4194304", "")


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


def test_what_stays_with_a_gpu_is_read_again_until_it_could_be_read(library: Library) -> None:
    gpu, session = library.gpus[0], Nvml()
    gpu.unreadable = frozenset({"nvmlDeviceGetUUID"})
    assert poll(session)["0000:1b:00.0"].values["uuid"] is Missing.UNREADABLE
    gpu.unreadable = frozenset()
    assert poll(session)["0000:1b:00.0"].values["uuid"] == gpu.uuid


def test_an_older_board_has_absolute_limits_and_a_newer_one_signed_offsets(library: Library) -> None:
    library.gpus[0].unsupported = frozenset({"nvmlDeviceGetMarginTemperature"})
    library.gpus[1].temperature_c = 95
    values = poll(Nvml())
    old, new = values["0000:1b:00.0"].values, values["0000:43:00.0"].values
    assert (old["margin_c"], old["temperature_c"]) == (Missing.UNSUPPORTED, 34)
    assert (new["margin_c"], new["slowdown_tlimit_c"], new["shutdown_tlimit_c"]) == (-8, -2, -12)


def test_where_a_gpus_links_lead_is_read_once_and_unsupported_is_not_unreadable(library: Library) -> None:
    one, two, three, four, five = library.gpus[:5]
    for gpu in library.gpus[:5]:
        gpu.architecture = 5  # from Ampere on nobody asks
        gpu.peers = ("00000000:9D:00.0", "00000000:DF:00.0") * 9
    one.unsupported = frozenset({"nvmlDeviceGetNvLinkState"})  # it has no NVLink
    two.unsupported = frozenset({"nvmlDeviceGetNvLinkRemotePciInfo_v2"})  # an older driver can't tell
    three.unreadable = frozenset({"nvmlDeviceGetNvLinkState"})
    four.numbers["nvlink_active"] = 1  # what a link that is down leads to is not told
    session = Nvml()
    told = {o.pci: o.values["nvlink_peers"] for o in session.poll() if "nvlink_peers" in o.values}
    assert list(told.values())[:4] == [Missing.UNSUPPORTED, Missing.UNREADABLE, Missing.UNREADABLE, "0000:9d:00.0"]
    assert told[five.address] == "0000:9d:00.0,0000:df:00.0"
    three.unreadable, five.unreadable = frozenset(), frozenset({"nvmlDeviceGetNvLinkState"})
    told = {o.pci: o.values["nvlink_peers"] for o in session.poll() if "nvlink_peers" in o.values}
    assert told[three.address] == told[five.address] == "0000:9d:00.0,0000:df:00.0"


def test_without_libcuda_the_gpus_are_read_all_the_same(library: Library) -> None:
    library.cuda_error = 12  # a container with the driver capability utility only
    seen = list(Nvml().poll())
    assert sum(o.signal is Signal.READING for o in seen) == 8
    assert seen[-1].values["cuda_driver_version"] is Missing.UNSUPPORTED


@pytest.mark.parametrize("known_before", [True, False])
def test_a_lost_gpu_is_a_fact_and_the_others_are_still_read(library: Library, known_before: bool) -> None:
    session = Nvml()
    if known_before:
        poll(session)
    library.gpus[3].lost = True
    seen = poll(session)
    assert seen["0000:61:00.0"].signal is Signal.LOST
    assert sum(o.signal is Signal.READING for o in seen.values()) == 7


def test_a_gpu_that_left_the_enumeration_has_no_reading_and_is_named(library: Library) -> None:
    session = Nvml()
    poll(session)
    library.gpus.pop()
    for _ in range(2):
        seen = poll(session)
        assert "0000:df:00.0" not in seen, "a reading would prove that it is back"
        assert (seen["node"].values["gpu_count"], seen["node"].values["missing"]) == (7, "0000:df:00.0=absent")


def test_the_gpus_behind_one_that_left_move_up_as_nvml_counts_them_and_stay_themselves(library: Library) -> None:
    session = Nvml()
    before = poll(session)
    library.gpus.pop(2)
    after = poll(session)
    assert [after[gpu.address].values["index"] for gpu in library.gpus] == list(range(7))
    assert {pci: o.values["uuid"] for pci, o in after.items() if pci != "node"} == {
        gpu.address: before[gpu.address].values["uuid"] for gpu in library.gpus
    }


def test_a_gpu_that_cannot_be_opened_is_lost_if_it_was_known_and_else_counted_out(library: Library) -> None:
    session = Nvml()
    poll(session)
    library.gpus[3].lost, library.unopenable = True, {3: nv.NVML_ERROR_GPU_IS_LOST}
    known, anew = poll(session), poll(Nvml())
    assert known["0000:61:00.0"].signal is Signal.LOST
    assert "0000:61:00.0" not in anew
    assert (anew["node"].values["gpu_count"], anew["node"].values["unopened"]) == (7, "3:15")


def test_a_gpu_that_is_left_out_is_not_opened_and_every_other_is_as_ever(library: Library, tmp_path: Path) -> None:
    """Not even when those before it leave: an index is another GPU's by then."""
    pci = "0000:9d:00.0"
    library.gpus[4].hanging = set(SYMBOLS) | {"nvmlDeviceGetHandleByIndex_v2"}
    ever = {gpu.address for gpu in library.gpus}
    session = Nvml(ever, tmp_path / "nothing", left_out=[pci])
    seen = poll(session)
    assert (seen[pci].signal, seen[pci].value) == (Signal.FAILED, Failure.HUNG)
    assert sum(o.signal is Signal.READING for o in seen.values()) == 7
    assert (seen["node"].values["gpu_count"], seen["node"].values["missing"]) == (8, "")
    library.gpus[6].lost = True
    library.gpus.pop(2)
    seen = poll(session)
    assert (seen["0000:d1:00.0"].signal, seen["node"].values["missing"]) == (Signal.LOST, "0000:52:00.0=unknown")
    assert library.opened == ever - {pci}
    library.event(library.gpus[0], nv.nvmlEventTypeXidCriticalError, 13)
    assert next(session.events(0.1, time.sleep)).value == 13


def test_a_gpu_that_is_left_out_and_leaves_the_bus_is_missing(library: Library, tmp_path: Path) -> None:
    seen = poll(Nvml({gpu.address for gpu in library.gpus}, tmp_path, left_out=["0000:9d:00.0"]))
    assert ("0000:9d:00.0" in seen, seen["node"].values["missing"]) == (False, "0000:9d:00.0=absent")


def test_a_gpu_that_came_back_is_asked_again_for_all_it_has(library: Library) -> None:
    session = Nvml()
    library.gpus[7].unsupported = frozenset({"nvmlDeviceGetEccMode"})
    poll(session)
    gpu = library.gpus.pop()
    poll(session)
    gpu.unsupported = frozenset()
    library.gpus.append(gpu)
    seen = poll(session)
    assert (seen["0000:df:00.0"].values["ecc_mode"], seen["node"].values["missing"]) == (1, "")
    library.event(gpu, nv.nvmlEventTypeXidCriticalError, 31)
    assert [o.signal for o in session.events(0.1, time.sleep)] == [Signal.XID, Signal.READING]


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


def test_an_event_that_waits_while_a_gpu_is_missing_is_not_lost(library: Library) -> None:
    session = Nvml()
    poll(session)
    library.gpus.pop()
    poll(session)
    library.event(library.gpus[0], nv.nvmlEventTypeXidCriticalError, 13)
    poll(session)
    assert next(session.events(0.1, time.sleep)).value == 13


def test_an_event_other_than_an_xid_is_only_a_reason_to_read(library: Library) -> None:
    session = Nvml()
    poll(session)
    library.event(library.gpus[1], nv.nvmlEventTypeGpuRecoveryAction)
    assert [(o.signal, o.pci) for o in session.events(0.1, time.sleep)] == [(Signal.READING, "0000:43:00.0")]


@pytest.mark.parametrize("error", [nv.NVML_ERROR_UNKNOWN, nv.NVML_ERROR_NOT_SUPPORTED])
def test_a_wait_that_fails_costs_the_events_until_the_next_poll_and_no_reading(library: Library, error: int) -> None:
    session = Nvml()
    poll(session)
    library.wait_error = error
    assert list(session.events(0.01, time.sleep)) == []
    library.wait_error = 0
    assert poll(session)["0000:1b:00.0"].signal is Signal.READING
    library.event(library.gpus[0], nv.nvmlEventTypeXidCriticalError, 43)
    assert next(session.events(0.1, time.sleep)).value == 43


def test_a_lost_gpu_that_ends_the_wait_has_all_of_them_read(library: Library) -> None:
    session = Nvml()
    poll(session)
    library.wait_error, library.gpus[5].lost = nv.NVML_ERROR_GPU_IS_LOST, True
    assert [o.signal for o in session.events(0.01, time.sleep)].count(Signal.LOST) == 1


def test_no_event_is_no_observation(library: Library) -> None:
    session = Nvml()
    list(session.poll())
    assert list(session.events(0.01, time.sleep)) == []


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (9, Failure.DRIVER_NOT_LOADED),
        (12, Failure.NO_LIBRARY),
        (18, Failure.LIBRARY_MISMATCH),
        (4, Failure.NO_PERMISSION),
        (999, Failure.UNREADABLE),
    ],
)
def test_each_way_of_not_seeing_is_told_apart(library: Library, tmp_path: Path, error: int, said: Failure) -> None:
    library.init_error = error
    seen: list[Observation] = []
    stop = threading.Event()

    def say(observation: Observation) -> None:
        seen.append(observation)
        if len(seen) == 2:
            stop.set()

    code = follow(0.01, tmp_path / "boot_id", stop, say)
    assert {(o.signal, o.value) for o in seen} == {(Signal.FAILED, said)}
    renew = said in (Failure.NO_LIBRARY, Failure.LIBRARY_MISMATCH)
    assert (code, len(seen)) == ((75, 1) if renew else (0, 2)), "only a new process can load another library"


def test_what_mig_hid_is_read_again_once_it_is_off(library: Library) -> None:
    gpu, session = library.gpus[0], Nvml()
    gpu.mig = True
    hidden = next(session.poll()).values["ecc_uncorrected_volatile"]
    assert hidden is Missing.UNSUPPORTED
    gpu.mig = False
    next(session.poll())
    assert next(session.poll()).values["ecc_uncorrected_volatile"] == 0


def test_a_gpu_that_an_earlier_process_saw_is_missed(library: Library, tmp_path: Path) -> None:
    seen: list[Observation] = []
    stop = threading.Event()

    def say(observation: Observation) -> None:
        seen.append(observation)
        if observation.signal is Signal.ALIVE:
            stop.set()

    follow(0.01, tmp_path / "boot_id", stop, say, tmp_path, known=["0000:ff:00.0"])
    assert seen[-1].values["missing"] == "0000:ff:00.0=absent"


def test_devices_that_were_taken_from_the_container_are_no_fault_of_the_gpus(tmp_path: Path) -> None:
    device = tmp_path / "nvidiactl"
    device.touch()
    unknown = nv.NVMLError(nv.NVML_ERROR_UNKNOWN)
    assert failure(unknown, device).value == Failure.UNREADABLE
    assert failure(unknown, tmp_path / "none").value == Failure.UNREADABLE
    root = os.geteuid() == 0  # whom only an immutable file refuses, with the very EPERM of the device cgroup
    subprocess.run(["chattr", "+i", device] if root else ["chmod", "0", device], check=True)
    try:
        assert failure(unknown, device).value == Failure.NO_PERMISSION
    finally:
        subprocess.run(["chattr", "-i", device] if root else ["chmod", "600", device], check=True)


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


def test_a_session_that_ended_is_begun_anew_and_still_knows_who_is_gone(library: Library, tmp_path: Path) -> None:
    (tmp_path / "boot_id").write_text("b1\n")
    stop, alive = threading.Event(), []

    def say(observation: Observation) -> None:
        if observation.signal is Signal.ALIVE:
            alive.append(observation)
            library.count_error = nv.NVML_ERROR_UNINITIALIZED
        elif library.count_error and observation.value != Failure.HUNG:  # a slow machine may be told of as well
            library.count_error = 0
            library.gpus.pop()
        if len(alive) == 2:
            stop.set()

    follow(0.01, tmp_path / "boot_id", stop, say)
    assert [(o.values["missing"], o.boot_id) for o in alive] == [("", "b1"), ("0000:df:00.0=absent", "b1")]


def test_a_reader_that_went_away_ends_the_program_quietly() -> None:
    command = [sys.executable, "-c", SIMULATED, "0.02"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert (process.wait(LATEST_S), process.stderr.read()) == (0, b"")


def test_sigterm_ends_the_program_promptly() -> None:
    with subprocess.Popen([sys.executable, "-c", SIMULATED, "60"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        began = time.monotonic()
        process.terminate()
        assert process.wait(LATEST_S) == 0
        assert time.monotonic() - began < 2


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


@pytest.mark.parametrize("symbol", sorted({*SYMBOLS, "nvmlDeviceGetHandleByIndex_v2"}))
def test_whichever_call_hangs_is_named_while_it_hangs_and_read_again_when_it_returns(
    library: Library, tmp_path: Path, symbol: str
) -> None:
    said: list[Observation] = []
    stop = threading.Event()
    library.gpus = library.gpus[:2]
    poll_s = 0.04
    known = [gpu.address for gpu in library.gpus]
    options = {"slow_s": 0, "known": known, "devices": tmp_path / "nothing"}
    reader = threading.Thread(target=follow, args=(poll_s, tmp_path / "none", stop, said.append), kwargs=options)
    if symbol in {"nvmlDeviceGetRetiredPagesPendingStatus", "nvmlDeviceGetTemperatureThreshold"}:
        library.gpus[1].thresholds = True
    if "NvLink" in symbol:
        library.gpus[1].architecture = 5
    library.gpus[1].hanging.add(symbol)
    reader.start()
    try:
        # It names the GPU, so that the others can be read without it. A busy machine may hold up a call into the other.
        names = (Failure.HUNG, library.gpus[1].address)
        until(lambda: any((o.value, o.pci) == names and "does not answer: " in o.raw for o in said))
        library.gpus[1].hanging.clear()
        came = len(said)
        until(lambda: any(o.signal is Signal.ALIVE for o in said[came:]))
    finally:
        library.gpus[1].hanging.clear()
        stop.set()
        reader.join(LATEST_S)
    assert not reader.is_alive()


def test_a_call_held_back_for_a_second_by_a_busy_machine_is_no_driver_that_hangs(
    library: Library, tmp_path: Path
) -> None:
    said: list[Observation] = []
    stop = threading.Event()
    library.gpus[0].hanging.add("nvmlDeviceGetEccMode")
    reader = threading.Thread(target=follow, args=(0.1, tmp_path / "none", stop, said.append), kwargs={"slow_s": 1.0})
    began = time.monotonic()
    reader.start()
    try:
        until(lambda: any(o.value == Failure.HUNG for o in said))
        assert time.monotonic() - began >= 1.0
    finally:
        library.gpus[0].hanging.clear()
        stop.set()
        reader.join()


def test_a_storm_of_events_is_read_once_a_second_and_counted_with_the_next_poll(library: Library) -> None:
    session = Nvml()
    list(session.poll())
    for code in (13,) * 500 + (79,):
        library.event(library.gpus[2], nv.nvmlEventTypeXidCriticalError, code)
    seen = [o for _ in range(501) for o in session.events(0.1, lambda _: None)]
    assert [o.value for o in seen if o.signal is Signal.XID] == [13, 79]
    assert sum(o.signal is Signal.READING for o in seen) == 2
    told = [o for o in session.poll() if o.signal is Signal.XID]
    assert [(o.value, o.values["repeats"]) for o in told] == [(13, 499)]
