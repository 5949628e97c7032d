"""NVML through pynvml: readings of every GPU at each poll, and events at once, as JSON lines on standard output."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pynvml as nv

from agent.model.observation import Failure, Missing, Observation, Signal, Value
from agent.sources.nvml.device import Gpu
from agent.sources.nvml.enumeration import enumerated, pointer
from agent.sources.nvml.pci_bus import NVIDIA, SYSFS, UNKNOWN, holders, missing, slots
from agent.sources.nvml.readings import Handle, versions
from agent.sources.nvml.return_codes import ENDED, SICK, failure, left_alone, sick, words
from agent.sources.process.program import read_boot_id, say, while_read
from agent.sources.process.progress import SLOW_S, CurrentCall
from agent.sources.process.storm import Storm

_WAIT_S = 0.5  # one wait for events: short, so that SIGTERM is prompt
_BREATH_S = 0.01  # after each wait without an event: it may come back earlier than asked, and must not spin
_LONGEST = 4000  # characters of one line about silent GPUs
_NONE = 0xFFFFFFFF  # an event that belongs to no MIG instance
_EXIT_RENEW = 75  # sysexits EX_TEMPFAIL: only a new process can load another library

_EVENTS = (
    nv.nvmlEventTypeXidCriticalError,
    nv.nvmlEventTypeDoubleBitEccError,
    nv.nvmlEventTypeDramRetirementEvent,
    nv.nvmlEventTypeDramRetirementFailure,
    nv.nvmlEventTypeNonFatalPoisonError,
    nv.nvmlEventTypeFatalPoisonError,
    nv.nvmlEventTypeGpuUnavailableError,
    nv.nvmlEventTypeGpuRecoveryAction,
)


class Nvml:
    """One NVML session; ``poll`` and ``events`` raise only what ends it: an error of the whole library."""

    def __init__(
        self,
        ever: set[str] | None = None,
        devices: Path = SYSFS,
        call: CurrentCall | None = None,
        left_out: Collection[str] = (),
    ) -> None:
        """``ever`` holds the addresses that earlier sessions of this process saw, and takes in this one's.

        ``left_out`` are the addresses of GPUs at which other processes hung: nothing here touches them.
        """
        self._devices, self._call, self._left_out = devices, call or CurrentCall(), left_out
        self._storm = Storm()
        self._call.begins("initialising NVML")
        nv.nvmlInit()
        self._ever = set() if ever is None else ever
        self._present: dict[str, Gpu] = {}
        self._gone: dict[str, Gpu] = {}  # of this session: their old handles may still tell why
        self._events: Any = None
        self._lasting = {**versions(), "slots": slots(devices)}

    def close(self) -> None:
        self._call.polls(under_way=False)
        self._release()
        with contextlib.suppress(nv.NVMLError):
            nv.nvmlShutdown()

    def poll(self) -> Iterator[Observation]:
        """Every GPU's reading, or that it is lost, then the heartbeat."""
        began, cpu_began = time.monotonic(), time.thread_time()
        self._call.polls(under_way=True)
        yield from self._storm.gathered(began, all_of_them=True)
        known = self._expected() if self._left_out or not self._present else ()
        found, unopened = enumerated(self._present, known, self._left_out, self._call)
        self._gone = {pci: gpu for pci, gpu in {**self._gone, **self._present}.items() if pci not in found}
        changed, self._present = found != self._present, found
        self._ever.update(found)
        if changed or self._events is None:
            self._register()
        lost = set[str]()
        for gpu in self._gone.values():  # not enumerated, so it has no readings, whatever the old handle answers
            for observation in self._read(gpu):
                if observation.signal is not Signal.READING:
                    lost.add(gpu.pci)
                    yield observation
        on_bus = holders(self._devices)
        gone = missing(self._ever, set(found), on_bus)
        silent: dict[str, str] = {}  # GPUs that are there and answer nothing, and why
        there = [pci for pci, driver in gone.items() if driver in (NVIDIA, UNKNOWN)]
        alone = [pci for pci in there if pci in self._left_out]
        for pci in alone:
            there.remove(pci)
            del gone[pci]
            yield left_alone(pci)
        if len(there) == len(unopened):  # their handles fail: they did not leave. Else nobody knows which it is
            codes = sorted(set(unopened.values()))
            for pci in there:
                del gone[pci]
                silent[pci] = " or ".join(map(words, codes))
                if pci not in lost and len(codes) == 1 and codes[0] in SICK:
                    yield sick(pci, codes[0])
        for gpu in found.values():
            yield from (seen := list(self._read(gpu)))
            if not seen:
                silent[gpu.pci] = gpu.silence
        values: dict[str, Value] = {
            **self._lasting,
            "gpu_count": len(found) + len(alone),
            "on_bus": Missing.UNREADABLE if on_bus is None else len(on_bus),
            "missing": ",".join(f"{pci}={driver}" for pci, driver in gone.items()),
            "unopened": ",".join(f"{name}:{code}" for name, code in unopened.items()),  # NVML's, 0: of no address
            "silent": ";".join(f"{pci}={why}" for pci, why in sorted(silent.items()))[:_LONGEST],
            "poll_ms": round(1000 * (time.monotonic() - began), 3),
            "poll_cpu_ms": round(1000 * (time.thread_time() - cpu_began), 3),
        }
        self._call.polls(under_way=False)
        yield _observe(Signal.ALIVE, values=values)

    def _expected(self) -> set[str]:
        """Where GPUs of NVML's may be: those of earlier sessions, and those that the kernel says its driver holds."""
        bus = holders(self._devices) or {}
        return {pci for pci in self._ever | bus.keys() if bus.get(pci, NVIDIA) == NVIDIA}

    def events(self, wait_s: float, sleep: Callable[[float], object]) -> Iterator[Observation]:
        """Wait at most so long; for an event its Xid, and that GPU's reading at once."""
        if self._events is None:
            sleep(wait_s)
            return
        self._call.begins("waiting for events")
        try:
            event = nv.nvmlEventSetWait_v2(self._events, int(1000 * wait_s))
        except nv.NVMLError_Timeout:
            sleep(_BREATH_S)
            return
        except nv.NVMLError_GpuIsLost:  # it does not say which one
            yield from self.poll()
            sleep(wait_s)
            return
        except Exception as error:
            if isinstance(error, nv.NVMLError) and error.value in ENDED:
                raise
            self._release()  # polls still see; the next one registers anew
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
            observation = _observe(Signal.XID, gpu.pci, value=code, values=values, raw=f"NVML event: Xid {code}")
            if not self._storm.passes(observation, time.monotonic()):
                return  # counted, and told with the next poll; the GPU was read within this second
            yield observation
        yield from self._read(gpu)

    def _gpu_of(self, handle: Handle) -> Gpu | None:
        address = pointer(handle)
        return next((g for g in self._present.values() if pointer(g.handle) == address), None)

    def _register(self) -> None:
        """A new event set for the GPUs of this enumeration; one unsupported bit would fail them all."""
        self._release()
        registered = 0
        with contextlib.suppress(Exception):  # without events there are the polls
            self._events = nv.nvmlEventSetCreate()
            for gpu in self._present.values():
                self._call.begins(f"registering for events of GPU {gpu.pci}", gpu.pci)
                with contextlib.suppress(Exception):
                    if wanted := sum(_EVENTS) & nv.nvmlDeviceGetSupportedEventTypes(gpu.handle):
                        nv.nvmlDeviceRegisterEvents(gpu.handle, wanted, self._events)
                        registered += 1
        if not registered:
            self._release()

    def _release(self) -> None:
        if self._events is not None:
            with contextlib.suppress(nv.NVMLError):
                nv.nvmlEventSetFree(self._events)
            self._events = None

    def _read(self, gpu: Gpu) -> Iterator[Observation]:
        """The GPU's state or its values; nothing of one that answers nothing."""
        try:
            values = gpu.read()
        except nv.NVMLError as error:  # one of SICK
            yield sick(gpu.pci, error.value)
        else:
            if values:
                yield _observe(Signal.READING, gpu.pci, values=values)


def _observe(signal_: Signal, pci: str = "", **fields: Any) -> Observation:
    return Observation(time.time(), "nvml", signal_, pci, **fields)


def follow(
    poll_s: float,
    boot_id: Path,
    stop: threading.Event,
    say: Callable[[Observation], None],
    devices: Path = SYSFS,
    known: Iterable[str] = (),
    slow_s: float = SLOW_S,
    left_out: Collection[str] = (),
) -> int:
    """Poll and wait for events until ``stop``; the exit code. ``known`` are addresses that an earlier process saw,
    ``left_out`` are those of GPUs at which earlier ones hung.

    A call is said to hang that has not returned for a poll, and for ``slow_s``. Nothing waits on ``stop`` itself: a
    signal's handler sets it in this very thread, and would then wait for a lock that the thread already holds."""
    session: Nvml | None = None
    ever = set(known)
    code = 0
    call = CurrentCall()
    threading.Thread(target=call.watch, args=(max(poll_s, slow_s), stop, say), name="stuck", daemon=True).start()

    def tell(seen: Iterable[Observation], boot: str) -> None:
        for observation in seen:
            say(replace(observation, boot_id=boot) if observation.signal is Signal.ALIVE else observation)
            if stop.is_set():
                return

    while not stop.is_set() and not code:
        due = time.monotonic() + poll_s
        try:
            session = session or Nvml(ever, devices, call, left_out)
            boot = read_boot_id(boot_id)  # before the GPUs: what is read after it can't be older than this boot
            tell(session.poll(), boot)
            due = max(due, time.monotonic() + min(_WAIT_S, poll_s))  # events are heard after a slow poll too
            while not stop.is_set() and (left := due - time.monotonic()) > 0:
                tell(session.events(min(_WAIT_S, left), time.sleep), boot)
        except BrokenPipeError:
            raise
        except Exception as error:  # noqa: BLE001 - NVML's own, or what the binding makes of an odd answer
            if session:
                session.close()
                session = None
            failed = failure(error)
            say(failed)
            code = _EXIT_RENEW if failed.value in (Failure.NO_LIBRARY, Failure.LIBRARY_MISMATCH) else 0
            while not stop.is_set() and (left := due - time.monotonic()) > 0:
                call.begins("")
                time.sleep(min(_WAIT_S, left))
    call.begins("")
    if session:
        session.close()
    return code


def run(
    poll_s: float, boot_id_file: Path, devices: Path = SYSFS, known: Iterable[str] = (), left_out: Collection[str] = ()
) -> int:
    """The program behind its options; the exit code."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    return while_read(partial(follow, poll_s, boot_id_file, stop, say, devices, known, left_out=left_out))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m agent.sources.nvml", description=__doc__)
    parser.add_argument("--poll-s", type=float, default=5.0)
    parser.add_argument("--boot-id-file", type=Path, default=Path("/proc/sys/kernel/random/boot_id"))
    parser.add_argument("--known", nargs="*", default=[], metavar="PCI", help="GPUs that this node is known to have")
    parser.add_argument("--leave-out", nargs="*", default=[], metavar="PCI", help="GPUs at which calls hung")
    options = parser.parse_args()
    return run(options.poll_s, options.boot_id_file, known=options.known, left_out=options.leave_out)


if __name__ == "__main__":
    sys.exit(main())
