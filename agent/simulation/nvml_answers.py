"""What a simulated GPU answers to each C symbol that pynvml calls about it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pynvml as nv

from agent.simulation.gpu import POWER_W, SimulatedGpu
from agent.sources.nvml.readings import FIELDS, LINK_FIELDS

_LIMIT_C = 87.0  # the margin counts down to here
SUPPORTED_EVENTS = 0x1F | nv.nvmlEventTypeGpuRecoveryAction


def put(reference: Any, value: Any) -> int:
    reference._obj.value = value
    return 0


def put_text(buffer: Any, value: str) -> int:
    buffer.value = value.encode()
    return 0


def _one(value: Callable[[SimulatedGpu], Any]) -> Callable[..., int]:
    return lambda gpu, *arguments: put(arguments[-1], value(gpu))


def _several(*values: int) -> Callable[..., int]:
    def answer(_: SimulatedGpu, *references: Any) -> int:
        for reference, value in zip(references, values, strict=True):
            put(reference, value)
        return 0

    return answer


# Calls with one number out.
VALUES: dict[str, Callable[..., int]] = {
    "nvmlDeviceGetArchitecture": _one(lambda gpu: gpu.architecture),
    "nvmlDeviceGetMinorNumber": _one(lambda gpu: gpu.index),
    "nvmlDeviceGetMaxPcieLinkGeneration": _one(lambda _: 5),
    "nvmlDeviceGetMaxPcieLinkWidth": _one(lambda _: 16),
    "nvmlDeviceGetCurrPcieLinkGeneration": _one(lambda _: 5),
    "nvmlDeviceGetCurrPcieLinkWidth": _one(lambda gpu: gpu.number("pcie_width", 16)),
    "nvmlDeviceGetPcieReplayCounter": _one(lambda gpu: gpu.number("pcie_replays")),
    "nvmlDeviceGetRetiredPagesPendingStatus": _one(lambda gpu: gpu.number("retired_pages_pending")),
    "nvmlDeviceGetCurrentClocksEventReasons": _one(lambda gpu: 0x1 if gpu.temperature_c < _LIMIT_C else 0x48),
    "nvmlDeviceGetPowerUsage": _one(lambda _: int(1000 * POWER_W)),
    "nvmlDeviceGetEnforcedPowerLimit": _one(lambda _: 700_000),
    "nvmlDeviceGetTotalEnergyConsumption": _one(lambda gpu: int(1000 * gpu.energy_j)),
    "nvmlDeviceGetPersistenceMode": _one(lambda gpu: gpu.number("persistence_mode", 1)),
    "nvmlDeviceGetNvLinkRemoteDeviceType": _one(
        lambda gpu: nv.NVML_NVLINK_DEVICE_TYPE_GPU if gpu.peers else nv.NVML_NVLINK_DEVICE_TYPE_SWITCH
    ),
    "nvmlDeviceGetSupportedEventTypes": _one(lambda _: SUPPORTED_EVENTS),
}


def _margin(gpu: SimulatedGpu, out: Any) -> int:
    if gpu.thresholds:
        return int(nv.NVML_ERROR_NOT_SUPPORTED)
    out._obj.marginTemperature = round(_LIMIT_C - gpu.temperature_c)
    return 0


def _heat(gpu: SimulatedGpu, out: Any) -> int:
    out._obj.temperature = round(gpu.temperature_c)
    return 0


def _address(gpu: SimulatedGpu, out: Any) -> int:
    out._obj.busId = gpu.pci.encode()
    return 0


def _ecc(gpu: SimulatedGpu, kind: Any, counter: Any, out: Any) -> int:
    if gpu.mig and counter.value == nv.NVML_VOLATILE_ECC:
        return int(nv.NVML_ERROR_NOT_SUPPORTED)
    if kind.value != nv.NVML_MEMORY_ERROR_TYPE_UNCORRECTED:
        return put(out, gpu.number("ecc_corrected_volatile"))
    return put(out, gpu.ecc_uncorrected if counter.value == nv.NVML_VOLATILE_ECC else gpu.ecc_uncorrected_aggregate)


def _threshold(gpu: SimulatedGpu, which: Any, out: Any) -> int:
    if not gpu.thresholds:
        return int(nv.NVML_ERROR_NOT_SUPPORTED)
    limits = {
        nv.NVML_TEMPERATURE_THRESHOLD_SHUTDOWN: 96,
        nv.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN: 93,
        nv.NVML_TEMPERATURE_THRESHOLD_MEM_MAX: 95,
        nv.NVML_TEMPERATURE_THRESHOLD_GPU_MAX: 85,
    }
    return put(out, limits[which.value])


def _remapped(gpu: SimulatedGpu, *out: Any) -> int:
    if gpu.mig:
        return int(nv.NVML_ERROR_NOT_SUPPORTED)
    names = ("remapped_rows_corrected", "remapped_rows_uncorrected", "remapped_rows_pending", "remapped_rows_failure")
    return _several(*(gpu.number(name) for name in names))(gpu, *out)


def _spares(gpu: SimulatedGpu, out: Any) -> int:
    out._obj.none = gpu.number("remap_banks_without_spares")
    return 0


def _sram(gpu: SimulatedGpu, out: Any) -> int:
    out._obj.bThresholdExceeded = gpu.number("sram_threshold_exceeded")
    return 0


def _inforom(gpu: SimulatedGpu) -> int:
    return int(nv.NVML_ERROR_CORRUPTED_INFOROM) if gpu.number("inforom_corrupt") else 0


def _fabric(gpu: SimulatedGpu, out: Any) -> int:
    out._obj.state, out._obj.status = gpu.number("fabric_state", 3), 0
    out._obj.healthMask = gpu.number("fabric_health_mask", 0x1AA)  # a healthy mask: every field says no
    if out._obj.version == nv.nvmlGpuFabricInfo_v3:  # the second version has no summary
        out._obj.healthSummary = gpu.number("fabric_health_summary", 1)
    return 0


# Field values of a Hopper board; the thermal offsets are in the margin's scale.
_FIELDS: dict[int, Callable[[SimulatedGpu], int]] = {
    nv.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION: lambda gpu: gpu.recovery_action,
    nv.NVML_FI_DEV_MEMORY_TEMP: lambda gpu: gpu.number("memory_temperature_c", round(gpu.temperature_c) + 8),
    nv.NVML_FI_DEV_NVLINK_LINK_COUNT: lambda gpu: gpu.nvlinks,
    **{
        number: partial(SimulatedGpu.number, signal=name)
        for number, name in {**FIELDS, **{row.field: row.name for row in LINK_FIELDS}}.items()
        if name.endswith(("_ns", "_errors", "_failed", "_replay", "_recovery", "_crc", "_ber"))
    },
    nv.NVML_FI_DEV_NVLINK_GET_STATE: lambda _: 1,
}
_TLIMITS = {
    nv.NVML_FI_DEV_TEMPERATURE_SHUTDOWN_TLIMIT: -12,
    nv.NVML_FI_DEV_TEMPERATURE_SLOWDOWN_TLIMIT: -2,
    nv.NVML_FI_DEV_TEMPERATURE_MEM_MAX_TLIMIT: 0,
    nv.NVML_FI_DEV_TEMPERATURE_GPU_MAX_TLIMIT: 0,
}
_LONG = 4  # NVML_VALUE_TYPE_SIGNED_LONG_LONG
_PER_LINK = {row.field for row in LINK_FIELDS if not row.total}


def _fields(gpu: SimulatedGpu, _count: Any, out: Any) -> int:
    for entry in out._obj:
        value = _field(gpu, entry.fieldId, entry.scopeId)
        entry.nvmlReturn = nv.NVML_ERROR_NOT_SUPPORTED if value is None else nv.NVML_SUCCESS
        if value is not None and entry.fieldId == nv.NVML_FI_DEV_NVLINK_LINK_COUNT:
            entry.valueType, entry.value.uiVal = 1, value
        elif value is not None:
            entry.valueType, entry.value.sllVal = _LONG, value
    return 0


def _field(gpu: SimulatedGpu, number: int, scope: int) -> int | None:
    """None: this GPU has no such value. Errors of NVLinks are all on link 0."""
    if number in _TLIMITS:
        return None if gpu.thresholds else _TLIMITS[number]
    if number == nv.NVML_FI_DEV_MEMORY_TEMP and not gpu.nvlinks:
        return None  # no HBM
    if number == nv.NVML_FI_DEV_NVLINK_GET_STATE:
        return int(scope < gpu.number("nvlink_active", gpu.nvlinks))
    answer = _FIELDS.get(number)
    if answer is None:
        return None
    return 0 if number in _PER_LINK and scope else answer(gpu)


_SWITCH = "00000000:05:00.0"


def _link(gpu: SimulatedGpu, link: Any, out: Any) -> int:
    if link >= gpu.nvlinks:
        return int(nv.NVML_ERROR_INVALID_ARGUMENT)
    return put(out, int(link < gpu.number("nvlink_active", gpu.nvlinks)))


def _remote(gpu: SimulatedGpu, link: Any, out: Any) -> int:
    if link >= gpu.number("nvlink_active", gpu.nvlinks):
        return int(nv.NVML_ERROR_NOT_SUPPORTED)  # a link that is down tells nothing of its other end
    out._obj.busId = (gpu.peers[link] if gpu.peers else _SWITCH).encode()
    return 0


def _processes(gpu: SimulatedGpu, count: Any, out: Any) -> int:
    """Asked twice: how many there are, then which."""
    put(count, len(gpu.processes))
    if out is None:
        return int(nv.NVML_ERROR_INSUFFICIENT_SIZE) if gpu.processes else 0
    for entry, pid in zip(out, sorted(gpu.processes), strict=False):
        entry.pid = pid
    return 0


# Calls with several results, text or a structure.
SHAPED: dict[str, Callable[..., int]] = {
    "nvmlDeviceGetUUID": lambda gpu, out, _: put_text(out, gpu.uuid),
    "nvmlDeviceGetName": lambda gpu, out, _: put_text(out, gpu.name),
    "nvmlDeviceGetSerial": lambda gpu, out, _: put_text(out, f"16503230{gpu.index:05d}"),
    "nvmlDeviceGetPciInfo_v3": _address,
    "nvmlDeviceGetTemperatureV": _heat,
    "nvmlDeviceGetMarginTemperature": _margin,
    "nvmlDeviceGetTemperatureThreshold": _threshold,
    "nvmlDeviceGetEccMode": lambda gpu, *out: _several(gpu.number("ecc_mode", 1), 1)(gpu, *out),
    "nvmlDeviceGetTotalEccErrors": _ecc,
    "nvmlDeviceGetSramEccErrorStatus": _sram,
    "nvmlDeviceGetRemappedRows": _remapped,
    "nvmlDeviceGetRowRemapperHistogram": _spares,
    "nvmlDeviceValidateInforom": _inforom,
    "nvmlDeviceGetGpuFabricInfoV": _fabric,
    "nvmlDeviceGetMigMode": lambda gpu, *out: _several(gpu.mig, gpu.mig)(gpu, *out),
    "nvmlDeviceGetComputeRunningProcesses_v3": _processes,
    "nvmlDeviceGetFieldValues": _fields,
    "nvmlDeviceGetNvLinkState": _link,
    "nvmlDeviceGetNvLinkRemotePciInfo_v2": _remote,
}

SYMBOLS = frozenset({*VALUES, *SHAPED})
