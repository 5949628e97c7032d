"""GPUs in memory behind the real pynvml: one Python callable per C symbol stands in for libnvidia-ml."""

from __future__ import annotations

import ctypes
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pynvml as nv

_HANDLE_BASE = 0x10000
_NONE = 0xFFFFFFFF
_IDLE_C = 34.0
_LIMIT_C = 87.0  # the margin counts down to here
_POWER_W = 96.0
_SUPPORTED_EVENTS = 0x1F | nv.nvmlEventTypeGpuRecoveryAction
_EPOCH_J = 1_000_000.0  # energy used before the simulation began


@dataclass(slots=True)
class SimulatedGpu:
    """The state of one GPU; the library answers from it and injections change it."""

    index: int
    pci: str  # as NVML has it: 00000000:1B:00.0
    uuid: str
    name: str
    architecture: int
    temperature_c: float = _IDLE_C
    ecc_uncorrected: int = 0
    ecc_uncorrected_aggregate: int = 0
    recovery_action: int = 0
    lost: bool = False
    reset_required: bool = False
    energy_base_j: float = _EPOCH_J
    epoch: float = field(default_factory=time.monotonic)
    unsupported: frozenset[str] = frozenset()  # C symbols that answer NOT_SUPPORTED
    unreadable: frozenset[str] = frozenset()  # C symbols that answer UNKNOWN

    @property
    def energy_j(self) -> float:
        return self.energy_base_j + _POWER_W * (time.monotonic() - self.epoch)

    def new_epoch(self) -> None:
        """What a reset or a reboot does to a GPU's counters and flags."""
        self.energy_base_j, self.epoch = 0.0, time.monotonic()
        self.ecc_uncorrected = self.recovery_action = 0
        self.temperature_c, self.lost, self.reset_required = _IDLE_C, False, False


class Library:
    """The state behind the stand-in, and its event queue."""

    def __init__(self, gpus: list[SimulatedGpu], driver: str = "580.95.05") -> None:
        self.gpus, self.driver = gpus, driver
        self.init_error = 0  # an NVML error code that nvmlInit answers
        self.cuda_error = self.count_error = self.wait_error = 0  # and that one system call answers
        self.unopenable: dict[int, int] = {}  # index → the error code that opening that GPU answers
        self._events: deque[tuple[int, int, int]] = deque()  # handle, type, data
        self._wanted: dict[int, int] = {}  # handle → the event types registered for it
        self._news = threading.Condition()

    def event(self, gpu: SimulatedGpu, kind: int, data: int = 0) -> None:
        """Deliver an event to whoever waits; like the driver, drop what nobody registered for."""
        handle = _HANDLE_BASE + gpu.index
        with self._news:
            if self._wanted.get(handle, 0) & kind:
                self._events.append((handle, kind, data))
                self._news.notify()

    def install(self) -> None:
        """Stand in for the library that pynvml loads."""
        nv.nvmlLib = SimpleNamespace(**self._system(), **self._devices())
        nv._nvmlGetFunctionPointer_cache.clear()

    def _system(self) -> dict[str, Callable[..., int]]:
        return {
            "nvmlInitWithFlags": lambda _: self.init_error,
            "nvmlShutdown": lambda: 0,
            "nvmlSystemGetDriverVersion": lambda out, _: _text(out, self.driver),
            "nvmlSystemGetNVMLVersion": lambda out, _: _text(out, f"13.{self.driver}"),
            "nvmlSystemGetCudaDriverVersion_v2": lambda out: self.cuda_error or _out(out, 13000),
            "nvmlDeviceGetCount_v2": lambda out: self.count_error or _out(out, len(self.gpus)),
            "nvmlDeviceGetHandleByIndex_v2": self._handle,
            "nvmlEventSetCreate": self._event_set,
            "nvmlEventSetFree": self._event_set,
            "nvmlDeviceRegisterEvents": self._register,
            "nvmlEventSetWait_v2": self._wait,
        }

    def _handle(self, index: Any, out: Any) -> int:
        number = int(getattr(index, "value", index))
        if number in self.unopenable:
            return self.unopenable[number]
        ctypes.c_void_p.from_buffer(out._obj).value = _HANDLE_BASE + number
        return 0

    def _event_set(self, _: Any) -> int:
        """There is one set; making and freeing it both leave it empty."""
        with self._news:
            self._events.clear()
            self._wanted.clear()
        return 0

    def _register(self, handle: Any, kinds: Any, _set: Any) -> int:
        if kinds.value & ~_SUPPORTED_EVENTS:
            return int(nv.NVML_ERROR_NOT_SUPPORTED)
        with self._news:
            self._wanted[ctypes.cast(handle, ctypes.c_void_p).value or 0] = kinds.value
        return 0

    def _wait(self, _set: Any, out: Any, timeout: Any) -> int:
        if self.wait_error:
            return self.wait_error
        with self._news:
            if not self._news.wait_for(lambda: bool(self._events), timeout.value / 1000):
                return int(nv.NVML_ERROR_TIMEOUT)
            handle, kind, data = self._events.popleft()
        event = out._obj
        event.device = ctypes.cast(handle, nv.c_nvmlDevice_t)
        event.eventType, event.eventData = kind, data
        event.gpuInstanceId = event.computeInstanceId = _NONE
        return 0

    def _devices(self) -> dict[str, Callable[..., int]]:
        """Every call about one GPU, behind the answers that a sick one gives."""
        calls = {**_VALUES, **_SHAPED}
        return {symbol: self._guarded(symbol, answer) for symbol, answer in calls.items()}

    def _guarded(self, symbol: str, answer: Callable[..., int]) -> Callable[..., int]:
        def call(handle: Any, *arguments: Any) -> int:
            number = (ctypes.cast(handle, ctypes.c_void_p).value or 0) - _HANDLE_BASE
            if number >= len(self.gpus):  # it was there when the handle was given
                return int(nv.NVML_ERROR_INVALID_ARGUMENT)
            gpu = self.gpus[number]
            if symbol != "nvmlDeviceGetPciInfo_v3":
                if gpu.lost:
                    return int(nv.NVML_ERROR_GPU_IS_LOST)
                if gpu.reset_required:
                    return int(nv.NVML_ERROR_RESET_REQUIRED)
            if symbol in gpu.unsupported:
                return int(nv.NVML_ERROR_NOT_SUPPORTED)
            return int(nv.NVML_ERROR_UNKNOWN) if symbol in gpu.unreadable else answer(gpu, *arguments)

        return call


def _out(reference: Any, value: Any) -> int:
    reference._obj.value = value
    return 0


def _text(buffer: Any, value: str) -> int:
    buffer.value = value.encode()
    return 0


def _one(value: Callable[[SimulatedGpu], Any]) -> Callable[..., int]:
    return lambda gpu, *arguments: _out(arguments[-1], value(gpu))


def _several(*values: int) -> Callable[..., int]:
    def answer(_: SimulatedGpu, *references: Any) -> int:
        for reference, value in zip(references, values, strict=True):
            _out(reference, value)
        return 0

    return answer


# Calls with one number out.
_VALUES: dict[str, Callable[..., int]] = {
    "nvmlDeviceGetIndex": _one(lambda gpu: gpu.index),
    "nvmlDeviceGetArchitecture": _one(lambda gpu: gpu.architecture),
    "nvmlDeviceGetMinorNumber": _one(lambda gpu: gpu.index),
    "nvmlDeviceGetMaxPcieLinkGeneration": _one(lambda _: 5),
    "nvmlDeviceGetMaxPcieLinkWidth": _one(lambda _: 16),
    "nvmlDeviceGetCurrPcieLinkGeneration": _one(lambda _: 5),
    "nvmlDeviceGetCurrPcieLinkWidth": _one(lambda _: 16),
    "nvmlDeviceGetPcieReplayCounter": _one(lambda _: 0),
    "nvmlDeviceGetCurrentClocksEventReasons": _one(lambda gpu: 0x1 if gpu.temperature_c < _LIMIT_C else 0x48),
    "nvmlDeviceGetPowerUsage": _one(lambda _: int(1000 * _POWER_W)),
    "nvmlDeviceGetEnforcedPowerLimit": _one(lambda _: 700_000),
    "nvmlDeviceGetTotalEnergyConsumption": _one(lambda gpu: int(1000 * gpu.energy_j)),
    "nvmlDeviceGetPersistenceMode": _one(lambda _: 1),
    "nvmlDeviceGetSupportedEventTypes": _one(lambda _: _SUPPORTED_EVENTS),
}


def _margin(gpu: SimulatedGpu, out: Any) -> int:
    out._obj.marginTemperature = round(_LIMIT_C - gpu.temperature_c)
    return 0


def _heat(gpu: SimulatedGpu, out: Any) -> int:
    out._obj.temperature = round(gpu.temperature_c)
    return 0


def _address(gpu: SimulatedGpu, out: Any) -> int:
    out._obj.busId = gpu.pci.encode()
    return 0


def _ecc(gpu: SimulatedGpu, kind: Any, counter: Any, out: Any) -> int:
    if kind.value != nv.NVML_MEMORY_ERROR_TYPE_UNCORRECTED:
        return _out(out, 0)
    return _out(out, gpu.ecc_uncorrected if counter.value == nv.NVML_VOLATILE_ECC else gpu.ecc_uncorrected_aggregate)


# Field values of a Hopper board; the thermal offsets are in the margin's scale.
_FIELDS: dict[int, Callable[[SimulatedGpu], int]] = {
    nv.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION: lambda gpu: gpu.recovery_action,
    nv.NVML_FI_DEV_MEMORY_TEMP: lambda gpu: round(gpu.temperature_c) + 8,
    nv.NVML_FI_DEV_TEMPERATURE_SHUTDOWN_TLIMIT: lambda _: -12,
    nv.NVML_FI_DEV_TEMPERATURE_SLOWDOWN_TLIMIT: lambda _: -2,
    nv.NVML_FI_DEV_TEMPERATURE_MEM_MAX_TLIMIT: lambda _: 0,
    nv.NVML_FI_DEV_TEMPERATURE_GPU_MAX_TLIMIT: lambda _: 0,
    nv.NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN: lambda _: 0,
    nv.NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN: lambda _: 0,
    nv.NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN: lambda _: 0,
    nv.NVML_FI_DEV_PERF_POLICY_POWER: lambda _: 0,
    nv.NVML_FI_DEV_PERF_POLICY_THERMAL: lambda _: 0,
}
_SIGNED = 5  # NVML_VALUE_TYPE_SIGNED_INT


def _fields(gpu: SimulatedGpu, _count: Any, out: Any) -> int:
    for entry in out._obj:
        value = _FIELDS.get(entry.fieldId)
        entry.nvmlReturn = nv.NVML_SUCCESS if value else nv.NVML_ERROR_NOT_SUPPORTED
        if value:
            entry.valueType, entry.value.siVal = _SIGNED, value(gpu)
    return 0


# Calls with several results, text or a structure.
_SHAPED: dict[str, Callable[..., int]] = {
    "nvmlDeviceGetUUID": lambda gpu, out, _: _text(out, gpu.uuid),
    "nvmlDeviceGetName": lambda gpu, out, _: _text(out, gpu.name),
    "nvmlDeviceGetSerial": lambda gpu, out, _: _text(out, f"16503230{gpu.index:05d}"),
    "nvmlDeviceGetPciInfo_v3": _address,
    "nvmlDeviceGetTemperatureV": _heat,
    "nvmlDeviceGetMarginTemperature": _margin,
    "nvmlDeviceGetEccMode": _several(1, 1),
    "nvmlDeviceGetTotalEccErrors": _ecc,
    "nvmlDeviceGetSramEccErrorStatus": lambda *_: 0,
    "nvmlDeviceGetRemappedRows": _several(0, 0, 0, 0),
    "nvmlDeviceGetMigMode": _several(0, 0),
    "nvmlDeviceGetComputeRunningProcesses_v3": lambda _, *out: _out(out[0], 0),
    "nvmlDeviceGetFieldValues": _fields,
}


def h100_8() -> list[SimulatedGpu]:
    """The profile ``h100-8``: eight SXM5 boards at the addresses of a common HGX system."""
    buses = ("1B", "43", "52", "61", "9D", "C3", "D1", "DF")
    return [
        SimulatedGpu(i, f"00000000:{bus}:00.0", f"GPU-5e1f0000-0000-4000-8000-0000000000{i:02d}",
                     "NVIDIA H100 80GB HBM3", architecture=9)
        for i, bus in enumerate(buses)
    ]  # fmt: skip
