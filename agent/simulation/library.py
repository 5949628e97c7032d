"""GPUs in memory behind the real pynvml: one Python callable per C symbol stands in for libnvidia-ml."""

from __future__ import annotations

import ctypes
import threading
import time
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pynvml as nv

from agent.model.text import normalise_pci
from agent.simulation.gpu import SimulatedGpu
from agent.simulation.nvml_answers import SHAPED, SUPPORTED_EVENTS, VALUES, put, put_text

_HANDLE_BASE = 0x10000
_NONE = 0xFFFFFFFF
_BREATH_S = 0.005


class Library:
    """The state behind the stand-in, and its event queue."""

    def __init__(self, gpus: list[SimulatedGpu], driver: str = "580.95.05") -> None:
        self.gpus, self.driver = gpus, driver
        self.init_error = 0  # an NVML error code that nvmlInit answers
        self.cuda_error = self.count_error = self.wait_error = 0  # and that one system call answers
        self.unopenable: dict[int, int] = {}  # index → the error code that opening that GPU answers
        self.call_s = 0.0  # how long each call about a GPU takes
        self.opened: set[str] = set()  # addresses of the GPUs that were attached
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
            "nvmlSystemGetDriverVersion": lambda out, _: put_text(out, self.driver),
            "nvmlSystemGetNVMLVersion": lambda out, _: put_text(out, f"13.{self.driver}"),
            "nvmlSystemGetCudaDriverVersion_v2": lambda out: self.cuda_error or put(out, 13000),
            "nvmlDeviceGetCount_v2": lambda out: self.count_error or put(out, len(self.gpus)),
            "nvmlDeviceGetHandleByIndex_v2": self._by_index,
            "nvmlDeviceGetHandleByPciBusId_v2": self._by_address,
            "nvmlEventSetCreate": self._event_set,
            "nvmlEventSetFree": self._event_set,
            "nvmlDeviceRegisterEvents": self._register,
            "nvmlEventSetWait_v2": self._wait,
        }

    def _by_index(self, index: Any, out: Any) -> int:
        return self._handle(int(getattr(index, "value", index)), out)

    def _by_address(self, bus_id: Any, out: Any) -> int:
        pci = normalise_pci(bus_id.value.decode())
        index = next((i for i, gpu in enumerate(self.gpus) if gpu.address == pci), None)
        return int(nv.NVML_ERROR_NOT_FOUND) if index is None else self._handle(index, out)

    def _handle(self, index: int, out: Any) -> int:
        if index in self.unopenable:
            return self.unopenable[index]
        gpu = self.gpus[index]
        _wait_while(gpu, "nvmlDeviceGetHandleByIndex_v2")
        self.opened.add(gpu.address)
        ctypes.c_void_p.from_buffer(out._obj).value = _HANDLE_BASE + gpu.index
        return 0

    def _event_set(self, _: Any) -> int:
        """There is one set; making and freeing it both leave it empty."""
        with self._news:
            self._events.clear()
            self._wanted.clear()
        return 0

    def _register(self, handle: Any, kinds: Any, _set: Any) -> int:
        if kinds.value & ~SUPPORTED_EVENTS:
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
        calls: dict[str, Callable[..., int]] = {**VALUES, **SHAPED}
        calls["nvmlDeviceGetIndex"] = lambda gpu, out: put(out, self.gpus.index(gpu))
        return {symbol: self._guarded(symbol, answer) for symbol, answer in calls.items()}

    def _guarded(self, symbol: str, answer: Callable[..., int]) -> Callable[..., int]:
        def call(handle: Any, *arguments: Any) -> int:
            number = (ctypes.cast(handle, ctypes.c_void_p).value or 0) - _HANDLE_BASE
            gpu = next((gpu for gpu in self.gpus if gpu.index == number), None)
            if gpu is None:  # it was there when the handle was given
                return int(nv.NVML_ERROR_INVALID_ARGUMENT)
            _wait_while(gpu, symbol)
            if self.call_s:
                time.sleep(self.call_s)
            if symbol != "nvmlDeviceGetPciInfo_v3":
                if gpu.lost:
                    return int(nv.NVML_ERROR_GPU_IS_LOST)
                if gpu.reset_required:
                    return int(nv.NVML_ERROR_RESET_REQUIRED)
            if symbol in gpu.unsupported:
                return int(nv.NVML_ERROR_NOT_SUPPORTED)
            return int(nv.NVML_ERROR_UNKNOWN) if symbol in gpu.unreadable else answer(gpu, *arguments)

        return call


def _wait_while(gpu: SimulatedGpu, hangs: str) -> None:
    while hangs in gpu.hanging:
        time.sleep(_BREATH_S)  # like ctypes, it lets other threads run
