"""NVML through pynvml: readings of every GPU at each poll, and events at once, as JSON lines on standard output."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pynvml as nv

from agent.model import Failure, Missing, Observation, Signal, Value, normalise_pci
from agent.sources.nvml_signals import CALLS, FIELDS, STATIC, UNION, Handle, Read

_WAIT_S = 0.5  # one wait for events: short, so that SIGTERM is prompt
_NONE = 0xFFFFFFFF  # an event that belongs to no MIG instance
_EXIT_RENEW = 75  # sysexits EX_TEMPFAIL: only a new process can load another library

# Never there on this GPU with this driver, against a read that failed this time.
_UNSUPPORTED = (
    nv.NVML_ERROR_NOT_SUPPORTED, nv.NVML_ERROR_FUNCTION_NOT_FOUND, nv.NVML_ERROR_INVALID_ARGUMENT,
    nv.NVML_ERROR_DEPRECATED, nv.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
)  # fmt: skip
_FAILURES = {
    nv.NVML_ERROR_LIBRARY_NOT_FOUND: (Failure.NO_LIBRARY, "libnvidia-ml.so.1 is not in this container: run it with "
                                      "the NVIDIA runtime, or mount the driver's libraries"),
    nv.NVML_ERROR_DRIVER_NOT_LOADED: (Failure.DRIVER_NOT_LOADED, "the NVIDIA kernel module is not loaded"),
    nv.NVML_ERROR_LIB_RM_VERSION_MISMATCH: (Failure.LIBRARY_MISMATCH, "the NVML library and the kernel module are of "
                                            "different driver versions: a driver upgrade is under way"),
    nv.NVML_ERROR_NO_PERMISSION: (Failure.NO_PERMISSION, "no permission on the NVIDIA devices: give the container "
                                  "/dev/nvidiactl and the GPUs"),
}  # fmt: skip
_EVENTS = (
    nv.nvmlEventTypeXidCriticalError, nv.nvmlEventTypeDoubleBitEccError, nv.nvmlEventTypeDramRetirementEvent,
    nv.nvmlEventTypeDramRetirementFailure, nv.nvmlEventTypeNonFatalPoisonError, nv.nvmlEventTypeFatalPoisonError,
    nv.nvmlEventTypeGpuUnavailableError, nv.nvmlEventTypeGpuRecoveryAction,
)  # fmt: skip


@dataclass(slots=True)
class _Gpu:
    """A GPU of the present enumeration."""

    pci: str
    handle: Handle
    static: dict[str, Value] = field(default_factory=dict)
    unsupported: set[str] = field(default_factory=set)  # never asked again


class Nvml:
    """One NVML session; ``poll`` and ``events`` raise only what ends it (NVMLError of the whole library)."""

    def __init__(self) -> None:
        nv.nvmlInit()
        self._known: dict[str, _Gpu] = {}
        self._ever: set[str] = set()
        self._events: Any = None
        self._versions: dict[str, Value] = {
            "driver_version": nv.nvmlSystemGetDriverVersion(),
            "nvml_version": nv.nvmlSystemGetNVMLVersion(),
            "cuda_driver_version": nv.nvmlSystemGetCudaDriverVersion_v2(),
        }

    def close(self) -> None:
        with contextlib.suppress(nv.NVMLError):
            if self._events is not None:
                nv.nvmlEventSetFree(self._events)
            nv.nvmlShutdown()

    def poll(self) -> Iterator[Observation]:
        """Every GPU's reading, or that it is lost, then the heartbeat."""
        began = time.monotonic()
        count = nv.nvmlDeviceGetCount()
        found: dict[str, _Gpu] = {}
        for index in range(count):
            try:
                handle = nv.nvmlDeviceGetHandleByIndex(index)
                pci = normalise_pci(nv.nvmlDeviceGetPciInfo(handle).busId)
            except nv.NVMLError as error:
                if error.value in (nv.NVML_ERROR_UNINITIALIZED, nv.NVML_ERROR_DRIVER_NOT_LOADED):
                    raise
                continue  # it has no address to speak of; the GPUs known before are asked below
            found[pci] = self._known.get(pci) or _Gpu(pci, handle)
        gone = self._known.keys() - found.keys()
        for pci in gone:  # a lost GPU's handle lookup fails, and its old handle tells how
            with contextlib.suppress(nv.NVMLError_InvalidArgument, nv.NVMLError_NotFound):
                yield from self._read(self._known[pci])
        if found.keys() != self._known.keys():
            self._known |= found
            self._register()
        self._ever |= found.keys()
        for gpu in found.values():
            yield from self._read(gpu)
        values: dict[str, Value] = {
            **self._versions,
            "gpu_count": count,
            "lost_pcis": ",".join(sorted(self._ever - found.keys())),
            "poll_ms": round(1000 * (time.monotonic() - began), 3),
        }
        yield _observe(Signal.ALIVE, values=values)

    def events(self, wait_s: float, sleep: Callable[[float], object]) -> Iterator[Observation]:
        """Wait at most so long; for an event its Xid, and that GPU's reading at once."""
        if self._events is None:
            sleep(wait_s)
            return
        try:
            event = nv.nvmlEventSetWait_v2(self._events, int(1000 * wait_s))
        except nv.NVMLError_Timeout:
            return
        except nv.NVMLError_GpuIsLost:  # it does not say which one
            yield from self.poll()
            sleep(wait_s)
            return
        gpu = self._gpu_of(event.device)
        if gpu is None:
            return
        if event.eventType == nv.nvmlEventTypeXidCriticalError:
            values: dict[str, Value] = {}
            for name, number in (("gpu_instance", event.gpuInstanceId), ("compute_instance", event.computeInstanceId)):
                if number != _NONE:
                    values[name] = int(number)
            code = int(event.eventData)
            yield _observe(Signal.XID, gpu.pci, value=code, values=values, raw=f"NVML event: Xid {code}")
        yield from self._read(gpu)

    def _gpu_of(self, handle: Handle) -> _Gpu | None:
        address = _pointer(handle)
        return next((g for g in self._known.values() if _pointer(g.handle) == address), None)

    def _register(self) -> None:
        """A new event set for the GPUs of this enumeration; one unsupported bit would fail them all."""
        try:
            if self._events is not None:
                nv.nvmlEventSetFree(self._events)
            self._events = nv.nvmlEventSetCreate()
        except nv.NVMLError:
            self._events = None
            return
        for gpu in self._known.values():
            with contextlib.suppress(nv.NVMLError):
                wanted = sum(_EVENTS) & nv.nvmlDeviceGetSupportedEventTypes(gpu.handle)
                nv.nvmlDeviceRegisterEvents(gpu.handle, wanted, self._events)

    def _read(self, gpu: _Gpu) -> Iterator[Observation]:
        try:
            if not gpu.static:
                gpu.static = dict(self._values(gpu, (((name,), read) for name, read in STATIC)))
            values = {**gpu.static, **dict(self._values(gpu, CALLS)), **self._fields(gpu)}
        except nv.NVMLError_GpuIsLost:
            yield _observe(Signal.LOST, gpu.pci, raw="NVML error 15: the GPU is lost")
        except nv.NVMLError_ResetRequired:
            yield _observe(Signal.RESET_REQUIRED, gpu.pci, raw="NVML error 16: the GPU requires a reset")
        else:
            yield _observe(Signal.READING, gpu.pci, values=values)

    def _values(self, gpu: _Gpu, rows: Iterable[tuple[tuple[str, ...], Read]]) -> Iterator[tuple[str, Value]]:
        for names, read in rows:
            result: Any = Missing.UNSUPPORTED
            if names[0] not in gpu.unsupported:
                result = self._value(gpu, names[0], partial(read, gpu.handle))
            several = result if isinstance(result, tuple | list) else [result] * len(names)
            yield from zip(names, several, strict=False)

    def _value(self, gpu: _Gpu, name: str, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except nv.NVMLError as error:
            if error.value in (nv.NVML_ERROR_GPU_IS_LOST, nv.NVML_ERROR_RESET_REQUIRED):
                raise
            if error.value in _UNSUPPORTED:
                gpu.unsupported.add(name)
                return Missing.UNSUPPORTED
            return Missing.UNREADABLE

    def _fields(self, gpu: _Gpu) -> dict[str, Value]:
        wanted = [number for number, name in FIELDS.items() if name not in gpu.unsupported]
        values: dict[str, Value] = dict.fromkeys(gpu.unsupported & set(FIELDS.values()), Missing.UNSUPPORTED)
        answer = self._value(gpu, "fields", lambda: nv.nvmlDeviceGetFieldValues(gpu.handle, wanted))
        if isinstance(answer, Missing):
            return {**values, **{FIELDS[number]: answer for number in wanted}}
        for entry in answer:  # the call succeeds while single entries fail
            name = FIELDS[entry.fieldId]
            if entry.nvmlReturn == nv.NVML_SUCCESS:
                values[name] = getattr(entry.value, UNION[entry.valueType])
            elif entry.nvmlReturn in _UNSUPPORTED:
                gpu.unsupported.add(name)
                values[name] = Missing.UNSUPPORTED
            elif entry.nvmlReturn in (nv.NVML_ERROR_GPU_IS_LOST, nv.NVML_ERROR_RESET_REQUIRED):
                raise nv.NVMLError(entry.nvmlReturn)
            else:
                values[name] = Missing.UNREADABLE
        return values


def _pointer(handle: Handle) -> int | None:
    return ctypes.cast(handle, ctypes.c_void_p).value


def _observe(signal_: Signal, pci: str = "", **fields: Any) -> Observation:
    return Observation(time.time(), "nvml", signal_, pci, **fields)


def failure(error: nv.NVMLError) -> Observation:
    """A whole-library error as a fact; never a GPU's fault by itself."""
    value, sentence = _FAILURES.get(error.value, (Failure.UNREADABLE, "NVML can't be used"))
    return _observe(Signal.FAILED, value=value, raw=f"{sentence} (NVML error {error.value})")


def follow(poll_s: float, boot_id: Path, stop: threading.Event, say: Callable[[Observation], None]) -> int:
    """Poll and wait for events until ``stop``; the exit code."""
    session: Nvml | None = None
    while not stop.is_set():
        due = time.monotonic() + poll_s
        try:
            session = session or Nvml()
            boot = _boot_id(boot_id)  # before the GPUs: what is read after it can't be older than this boot
            for observation in session.poll():
                say(replace(observation, boot_id=boot) if observation.signal is Signal.ALIVE else observation)
            while not stop.is_set() and (left := due - time.monotonic()) > 0:
                for observation in session.events(min(_WAIT_S, left), stop.wait):
                    say(observation)
        except nv.NVMLError as error:
            if session:
                session.close()
                session = None
            failed = failure(error)
            say(failed)
            stop.wait(max(0.0, due - time.monotonic()))
            if failed.value in (Failure.NO_LIBRARY, Failure.LIBRARY_MISMATCH):
                return _EXIT_RENEW
    if session:
        session.close()
    return 0


def _boot_id(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(encoding="ascii", errors="replace").strip()
    return ""


def main(prepare: Callable[[argparse.Namespace], None] | None = None, parser: Any = None) -> int:
    """The program; the simulated source adds its options and prepares its GPUs first."""
    parser = parser or argparse.ArgumentParser(prog="python -m agent.sources.nvml", description=__doc__)
    parser.add_argument("--poll-s", type=float, default=5.0)
    parser.add_argument("--boot-id-file", type=Path, default=Path("/proc/sys/kernel/random/boot_id"))
    options = parser.parse_args()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    if prepare:
        prepare(options)
    try:
        return follow(options.poll_s, options.boot_id_file, stop, _say)
    except (BrokenPipeError, KeyboardInterrupt):
        return 0


def _say(observation: Observation) -> None:
    sys.stdout.write(observation.to_json() + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
