"""The GPUs that NVML has, each opened: by its index, or by its address where one must be left alone."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Collection, Mapping
from functools import partial

import pynvml as nv

from agent.model.observation import Missing, Value
from agent.model.text import normalise_pci
from agent.sources.nvml.device import Gpu
from agent.sources.nvml.readings import Handle
from agent.sources.nvml.return_codes import ENDED, NO_ADDRESS
from agent.sources.process.progress import CurrentCall

_MOST_GPUS = 256  # no node has so many: a higher count is none


def enumerated(
    present: Mapping[str, Gpu], known: Collection[str], left_out: Collection[str], call: CurrentCall
) -> tuple[dict[str, Gpu], dict[str, int]]:
    """The GPUs by address; by index or address NVML's error of those that can't be opened, or have no address.

    ``present`` are those of the last enumeration, ``known`` addresses at which there may be one. With some to leave out
    the known ones are opened by address, which attaches no other: behind an index may be any of them. A call that hangs
    while an index is opened is about the GPU of that place, as far as it can be told: NVML counts by address.
    """
    call.begins("enumerating the GPUs")
    count = min(nv.nvmlDeviceGetCount(), _MOST_GPUS)
    ways: dict[str, Callable[[], Handle]]
    if left_out:
        ways = {pci: partial(nv.nvmlDeviceGetHandleByPciBusId, pci) for pci in sorted(known) if pci not in left_out}
        order = list(ways)
    else:
        ways = {str(index): partial(nv.nvmlDeviceGetHandleByIndex, index) for index in range(count)}
        order = list(present) or sorted(known)
        order = order if len(order) == count else [""] * count
    found: dict[str, Gpu] = {}
    names: dict[str, str] = {}  # whose address it is by its own word
    unopened: dict[str, int] = {}
    for (name, opened), there in zip(ways.items(), order, strict=True):
        call.begins(f"opening GPU {name}", there)
        try:
            handle = opened()
            pci = normalise_pci(nv.nvmlDeviceGetPciInfo(handle).busId)
        except nv.NVMLError as error:
            if not (left_out and error.value == nv.NVML_ERROR_NOT_FOUND):
                unopened[name] = error.value
        except Exception:  # noqa: BLE001 - what the binding makes of an odd answer
            unopened[name] = NO_ADDRESS
        else:
            if pci in names:  # two say so: nobody knows which of them it is
                unopened[name] = unopened[names[pci]] = NO_ADDRESS
                found.pop(pci, None)
                continue
            names[pci] = name
            old = present.get(pci)
            found[pci] = old if old and pointer(old.handle) == pointer(handle) else Gpu(pci, handle, call)
            found[pci].static["index"] = _index(handle) if left_out else int(name)  # others move up when one is gone
    if not found and (codes := {*unopened.values()}) and codes <= {*ENDED}:  # from one of several it ends nothing
        raise nv.NVMLError(min(codes))
    return found, unopened


def _index(handle: Handle) -> Value:
    try:
        return int(nv.nvmlDeviceGetIndex(handle))
    except Exception:  # noqa: BLE001 - NVML's, or what the binding makes of an odd answer
        return Missing.UNREADABLE


def pointer(handle: Handle) -> int | None:
    return ctypes.cast(handle, ctypes.c_void_p).value
