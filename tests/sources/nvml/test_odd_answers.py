"""Whatever one call answers of one GPU, through the real pynvml: the others are read as before, and no source ends."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from typing import Any

import pynvml as nv
import pytest

from agent.model.observation import Missing, Signal, Value
from agent.simulation.gpu import SimulatedGpu, h100_8, v100_8
from agent.simulation.library import Library
from agent.simulation.nvml_answers import SYMBOLS
from agent.sources.nvml.readings import FIELDS, LINK_FIELDS
from agent.sources.nvml.session import Nvml
from tests.nvml.drivers import BRANCHES, FABRIC_V3_SINCE, OLDER, lacking, without_fields
from tests.nvml.promise import CODES, counts, opened, others_are_read_as_ever, seen

Answer = Callable[..., int]
ODD = 1  # the GPU that answers oddly, of three
BYTES = {"ones": 0xFF, "zeros": 0x00, "sevens": 0x77}
OLDEST, NEWEST = BRANCHES[0], BRANCHES[-1]  # with all that any branch asks; the library in C is swept in each


@pytest.fixture(params=[h100_8, v100_8], ids=["h100", "v100"])
def library(request: pytest.FixtureRequest) -> Iterator[Library]:
    yield from installed(request.param()[:3])


@pytest.fixture
def two_kinds() -> Iterator[Library]:
    """One board of each regime."""
    boards = [h100_8()[0], v100_8()[1]]
    for board in boards:
        board.nvlinks, board.peers = 2, board.peers[:2]
    yield from installed(boards)


def installed(gpus: list[SimulatedGpu]) -> Iterator[Library]:
    made = Library(gpus)
    made.install()
    yield made
    nv.nvmlLib = None
    nv._nvmlGetFunctionPointer_cache.clear()


def of_branch(library: Library, branch: int) -> None:
    """The library as a driver of this branch has it."""
    library.install()
    calls, absent = nv.nvmlLib, without_fields(branch)
    newer, fields, fabric = (
        getattr(calls, f"nvmlDevice{name}") for name in ("GetTemperatureV", "GetFieldValues", "GetGpuFabricInfoV")
    )
    for call, older in OLDER.items():
        setattr(calls, older, getattr(calls, call))

    def temperature(handle: Any, _sensor: Any, out: Any) -> int:
        heat = nv.c_nvmlTemperature_v1_t()
        code: int = newer(handle, nv.byref(heat))
        out._obj.value = heat.temperature
        return code

    def field_values(handle: Any, count: Any, out: Any) -> int:
        code: int = fields(handle, count, out)
        for entry in out._obj:
            if entry.fieldId in absent:
                entry.nvmlReturn = nv.NVML_ERROR_INVALID_ARGUMENT
        return code

    def fabric_info(handle: Any, out: Any) -> int:
        unknown = branch < FABRIC_V3_SINCE and out._obj.version != nv.nvmlGpuFabricInfo_v2
        code: int = nv.NVML_ERROR_ARGUMENT_VERSION_MISMATCH if unknown else fabric(handle, out)
        return code

    calls.nvmlDeviceGetTemperature = temperature
    calls.nvmlDeviceGetFieldValues, calls.nvmlDeviceGetGpuFabricInfoV = field_values, fabric_info
    for call in lacking(branch) & set(vars(calls)):
        delattr(calls, call)
    nv._nvmlGetFunctionPointer_cache.clear()


def answers(symbol: str, odd: Callable[[Answer], Answer], gpu: int = ODD) -> Answer:
    """One GPU's answers to a call become odd; the right ones, to be put back."""
    right: Answer = getattr(nv.nvmlLib, symbol)

    def call(handle: Any, *arguments: Any) -> int:
        its = ctypes.cast(handle, ctypes.c_void_p).value == 0x10000 + gpu
        return (odd(right) if its else right)(handle, *arguments)

    give(symbol, call)
    return right


def give(symbol: str, call: Answer) -> None:
    setattr(nv.nvmlLib, symbol, call)
    nv._nvmlGetFunctionPointer_cache.clear()


def failing(code: int) -> Callable[[Answer], Answer]:
    return lambda _: lambda *_: code


def filled(byte: int) -> Callable[[Answer], Answer]:
    """Success, and every result full of one byte."""

    def odd(right: Answer) -> Answer:
        def call(handle: Any, *arguments: Any) -> int:
            right(handle, *arguments)
            for argument in arguments:
                out = getattr(argument, "_obj", argument)
                if isinstance(out, ctypes.Structure | ctypes.Array | ctypes._SimpleCData) and out is not None:
                    ctypes.memset(ctypes.addressof(out), byte, ctypes.sizeof(out))
            return 0

        return call

    return odd


@pytest.mark.parametrize("branch", [OLDEST, NEWEST])
@pytest.mark.parametrize("odd", [0, 1], ids=["h100", "v100"])
def test_nothing_that_one_gpu_answers_changes_what_is_said_of_another(
    two_kinds: Library, branch: int, odd: int, record_property: Callable[[str, object], None]
) -> None:
    of_branch(two_kinds, branch)
    other = two_kinds.gpus[1 - odd].address
    right = {other: seen(opened())[0][other]}
    odd_answers = {f"error {code}": failing(code) for code in CODES} | {
        name: filled(byte) for name, byte in BYTES.items()
    }
    calls = sorted((SYMBOLS | set(OLDER.values())) & set(vars(nv.nvmlLib)))
    for symbol in calls:
        for name, answer in odd_answers.items():
            usual = answers(symbol, answer, odd)
            others_are_read_as_ever(opened(*(gpu.address for gpu in two_kinds.gpus)), right, f"{symbol}: {name}")
            give(symbol, usual)
    record_property(
        "counts", counts(f"in Python, R{branch}, GPU {odd} of 2", len(calls), len(calls) * len(odd_answers))
    )


@pytest.mark.parametrize("branch", BRANCHES)
def test_a_driver_without_a_call_has_every_other_value(two_kinds: Library, branch: int) -> None:
    of_branch(two_kinds, branch)
    right, _ = seen(opened())
    for symbol in sorted(SYMBOLS & set(vars(nv.nvmlLib))):
        usual = getattr(nv.nvmlLib, symbol)
        delattr(nv.nvmlLib, symbol)
        nv._nvmlGetFunctionPointer_cache.clear()
        read, told = seen(opened())
        give(symbol, usual)
        if symbol == "nvmlDeviceGetPciInfo_v3":
            assert told[-1].values["unopened"] == "0:13,1:13"
            continue
        for pci, values in right.items():
            absent = {name for name, value in values.items() if read[pci].get(name) != value}
            assert symbol not in OLDER or not absent, "an older form of the call gives the same"
            assert len(absent) <= len(FIELDS) + len(LINK_FIELDS) + 1, "all that one call gives"
            assert all(isinstance(read[pci].get(name), Missing | None) for name in absent), absent


@pytest.mark.parametrize("branch", BRANCHES)
def test_every_driver_from_470_on_gives_all_that_it_has(two_kinds: Library, branch: int) -> None:
    of_branch(two_kinds, branch)
    read, _ = seen(opened())
    hopper = read[two_kinds.gpus[0].address]
    assert (hopper["temperature_c"], hopper["clocks_event_reasons"], hopper["processes"]) == (34, 1, "")
    assert not [name for name, value in hopper.items() if value is Missing.UNREADABLE], "unsupported, and asked no more"
    since = {
        "fabric_health_mask": 550,
        "recovery_action": 565,
        "margin_c": 570,
        "fabric_health_summary": FABRIC_V3_SINCE,
        "channel_repair_pending": 580,
        "memory_unrepairable": 590,
    }
    has = {name for name in since if hopper[name] is not Missing.UNSUPPORTED}
    assert has <= {name for name, first in since.items() if branch >= first}
    assert branch < 550 or "fabric_health_mask" in has, "in the structure's second version"


@pytest.mark.parametrize("name", ["nvmlSystemGetDriverVersion", "nvmlSystemGetNVMLVersion", "nvmlEventSetWait_v2"])
def test_what_the_library_says_of_itself_ends_no_source(library: Library, name: str) -> None:
    right = getattr(nv.nvmlLib, name)
    for byte in BYTES.values():
        setattr(nv.nvmlLib, name, filled(byte)(right))
        nv._nvmlGetFunctionPointer_cache.clear()
        session = Nvml()
        assert len(seen(session)[0]) == 3
        list(session.events(0.0, lambda _: None))


ABSURD = {
    "ecc_uncorrected_volatile": 9 * 10**18,
    "ecc_uncorrected_aggregate": 9 * 10**18,
    "pcie_replays": 2**32 - 1,
    "temperature_c": 255,
    "memory_temperature_c": 255,
}


def test_an_absurd_value_is_no_reading_however_long_it_lasts(library: Library) -> None:
    gpu, session = library.gpus[ODD], Nvml()
    seen(session)
    gpu.ecc_uncorrected = gpu.ecc_uncorrected_aggregate = 9 * 10**18
    gpu.temperature_c = 255.0
    gpu.numbers.update(pcie_replays=2**32 - 1, memory_temperature_c=255)
    for _ in range(3):
        values = seen(session)[0][gpu.address]
        assert {
            name: values[name] for name in ABSURD if name in values and values[name] is not Missing.UNSUPPORTED
        } == {
            name: Missing.UNREADABLE
            for name in ABSURD
            if values.get(name, Missing.UNSUPPORTED) is not Missing.UNSUPPORTED
        }
    gpu.ecc_uncorrected = gpu.ecc_uncorrected_aggregate = 1
    assert seen(session)[0][gpu.address]["ecc_uncorrected_volatile"] == 1


def test_a_count_that_jumps_is_believed_once_it_is_read_again_and_its_sibling_jumped_too(library: Library) -> None:
    gpu, session = library.gpus[ODD], Nvml()

    def read(volatile: int, aggregate: int) -> Value:
        gpu.ecc_uncorrected, gpu.ecc_uncorrected_aggregate = volatile, aggregate
        return seen(session)[0][gpu.address]["ecc_uncorrected_volatile"]

    assert read(0, 4) == 0
    assert read(5_000_000, 4) is read(5_000_000, 4) is Missing.UNREADABLE, "the aggregate knows nothing of it"
    assert read(2, 6) == 2
    assert read(5_000_000, 5_000_004) is Missing.UNREADABLE, "seen once"
    assert read(5_000_001, 5_000_005) == 5_000_001


def test_a_gpu_that_answers_nothing_is_not_read_and_says_why(library: Library) -> None:
    gpu = library.gpus[ODD]
    gpu.unreadable = SYMBOLS - {"nvmlDeviceGetPciInfo_v3"}
    read, told = seen(Nvml())
    assert gpu.address not in read
    assert str(told[-1].values["silent"]).startswith(f"{gpu.address}=Unknown Error (NVML error 999) to ")


@pytest.mark.parametrize(("code", "said"), [(999, "Unknown Error"), (8, "power cables"), (4, "no permission")])
def test_a_gpu_that_cannot_be_opened_is_there_and_says_why(library: Library, code: int, said: str) -> None:
    session, gpu = opened(), library.gpus[ODD]
    seen(session)
    library.unopenable[ODD] = code
    read, told = seen(session)
    assert len(read) == 2
    assert told[-1].values["missing"] == ""
    assert said in str(told[-1].values["silent"])
    assert not [o for o in told if o.pci == gpu.address]


@pytest.mark.parametrize(("code", "signal"), [(15, Signal.LOST), (16, Signal.RESET_REQUIRED)])
def test_a_handle_that_names_the_gpus_state_is_that_state_even_of_a_gpu_never_opened(
    library: Library, code: int, signal: Signal
) -> None:
    library.unopenable[ODD] = code
    _, told = seen(opened(library.gpus[ODD].address))
    assert [(o.pci, o.signal) for o in told if o.signal in (Signal.LOST, Signal.RESET_REQUIRED)] == [
        (library.gpus[ODD].address, signal)
    ]
    assert told[-1].values["missing"] == ""


def test_a_crowd_of_processes_keeps_the_line_within_its_limit(library: Library) -> None:
    gpu: SimulatedGpu = library.gpus[ODD]
    gpu.processes = set(range(4_000_000, 4_002_200))
    read, told = seen(Nvml())
    assert all(len(o.to_json()) < 16 * 1024 for o in told)
    assert read[gpu.address]["processes_left_out"] == 2200 - 512


def test_what_was_unsupported_for_a_while_is_asked_again(library: Library) -> None:
    gpu, session = library.gpus[ODD], Nvml()
    gpu.unsupported |= {"nvmlDeviceGetPersistenceMode", "nvmlDeviceGetSerial"}
    seen(session)
    gpu.unsupported -= {"nvmlDeviceGetPersistenceMode", "nvmlDeviceGetSerial"}
    assert seen(session)[0][gpu.address]["persistence_mode"] is Missing.UNSUPPORTED
    session._present[gpu.address].asked_anew -= 601
    seen(session)
    values = seen(session)[0][gpu.address]
    assert (values["persistence_mode"], values["serial"]) == (1, "1650323000001")
