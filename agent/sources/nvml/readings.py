"""What is read of each GPU: one table row per signal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pynvml as nv

from agent.model.observation import Missing, Value
from agent.model.text import normalise_pci
from agent.sources.nvml.pod_of_process import pod_of
from agent.sources.nvml.return_codes import SICK, UNSUPPORTED

_MOST_PIDS, _MOST_PODS = 512, 128  # 5 and 6 KB of the 16 that a line may have

Handle = Any
Read = Callable[[Handle], Any]


def _ecc(kind: int, counter: int) -> Read:
    return lambda h: nv.nvmlDeviceGetTotalEccErrors(h, kind, counter)


def _threshold(which: int) -> Read:
    return lambda h: nv.nvmlDeviceGetTemperatureThreshold(h, which)


def _either(newer: Read, older: Read) -> Read:
    """The second where the driver lacks the first, or the form of its structure."""

    def read(h: Handle) -> Any:
        try:
            return newer(h)
        except nv.NVMLError as error:
            if error.value not in (nv.NVML_ERROR_FUNCTION_NOT_FOUND, nv.NVML_ERROR_ARGUMENT_VERSION_MISMATCH):
                raise
        return older(h)

    return read


def _sram(h: Handle) -> tuple[Any, ...]:
    status = nv.c_nvmlEccSramErrorStatus_v1_t()
    nv.nvmlDeviceGetSramEccErrorStatus(h, nv.byref(status))
    return status.bThresholdExceeded, status.aggregateUncParity, status.aggregateUncSecDed


def _inforom(h: Handle) -> int:
    """Whether the board's InfoROM fails its checksum; NVML says so by an error."""
    try:
        nv.nvmlDeviceValidateInforom(h)
    except nv.NVMLError_CorruptedInforom:
        return 1
    return 0


def _fabric(structure: Callable[[], Any]) -> Read:
    def read(h: Handle) -> tuple[Any, ...]:
        info = structure()
        nv.nvmlDeviceGetGpuFabricInfoV(h, nv.byref(info))
        return info.state, info.status, info.healthMask, getattr(info, "healthSummary", Missing.UNSUPPORTED)

    return read


def _link_count(h: Handle) -> int:
    entry = nv.nvmlDeviceGetFieldValues(h, [nv.NVML_FI_DEV_NVLINK_LINK_COUNT])[0]
    if entry.nvmlReturn != nv.NVML_SUCCESS:
        raise nv.NVMLError(entry.nvmlReturn)
    return int(entry.value.uiVal)


def nvlink_peers(h: Handle, goes_on: Callable[[], None]) -> str:
    """Addresses of the GPUs and switches at the other ends of its NVLinks; NOT_SUPPORTED if it has no NVLink.

    A link that is down may not tell where it leads: nothing is joined through it then, as far as NVML can say.
    ``goes_on`` is called between the calls, of which there are a hundred.
    """
    peers, there = set(), False
    for link in range(nv.NVML_NVLINK_MAX_LINKS):
        goes_on()
        try:
            up = nv.nvmlDeviceGetNvLinkState(h, link)
        except nv.NVMLError as error:
            if error.value not in UNSUPPORTED:
                raise
            continue  # the board has no such link
        there = True
        goes_on()
        try:
            if _remote_type(h, link) != nv.NVML_NVLINK_DEVICE_TYPE_IBMNPU:  # the processor's end
                peers.add(normalise_pci(nv.nvmlDeviceGetNvLinkRemotePciInfo(h, link).busId))
        except nv.NVMLError as error:
            if error.value in SICK:
                raise
            if up:
                raise nv.NVMLError(nv.NVML_ERROR_UNKNOWN) from error
    if not there:
        raise nv.NVMLError(nv.NVML_ERROR_NOT_SUPPORTED)
    return ",".join(sorted(peers))


def _remote_type(h: Handle, link: int) -> int:
    try:
        return int(nv.nvmlDeviceGetNvLinkRemoteDeviceType(h, link))
    except nv.NVMLError_FunctionNotFound:  # an older driver
        return int(nv.NVML_NVLINK_DEVICE_TYPE_UNKNOWN)


# By their versions: the binding's unversioned call raises no NVMLError where the driver lacks it.
_PIDS = _either(nv.nvmlDeviceGetComputeRunningProcesses_v3, nv.nvmlDeviceGetComputeRunningProcesses_v2)  # before R510


def _processes(h: Handle) -> tuple[str, str, int]:
    """The pids on the GPU, and those whose pod is known as ``pid=pod UID``: by the time of an Xid it may be gone.

    A source's line has its limit: of thousands of processes some are left out, and how many is told.
    """
    pids = [p.pid for p in _PIDS(h)]
    shown = pids[:_MOST_PIDS]
    pods = [f"{pid}={pod}" for pid in shown if (pod := pod_of(pid))]
    return ",".join(map(str, shown)), ",".join(pods[:_MOST_PODS]), len(pids) - len(shown)


# Which GPU it is: read once, before all else.
IDENTITY: tuple[tuple[str, Read], ...] = (
    ("uuid", nv.nvmlDeviceGetUUID),
    ("name", nv.nvmlDeviceGetName),
    ("architecture", nv.nvmlDeviceGetArchitecture),
)
# What else stays while a GPU is enumerated: read once, after what is read at each poll.
STATIC: tuple[tuple[str, Read], ...] = (
    ("serial", nv.nvmlDeviceGetSerial),
    ("minor_number", nv.nvmlDeviceGetMinorNumber),
    ("temperature_shutdown_c", _threshold(nv.NVML_TEMPERATURE_THRESHOLD_SHUTDOWN)),
    ("temperature_slowdown_c", _threshold(nv.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN)),
    ("temperature_mem_max_c", _threshold(nv.NVML_TEMPERATURE_THRESHOLD_MEM_MAX)),
    ("temperature_gpu_max_c", _threshold(nv.NVML_TEMPERATURE_THRESHOLD_GPU_MAX)),
    ("pcie_max_generation", nv.nvmlDeviceGetMaxPcieLinkGeneration),
    ("pcie_max_width", nv.nvmlDeviceGetMaxPcieLinkWidth),
    ("inforom_corrupt", _inforom),
    ("nvlink_count", _link_count),
)
# One row per signal, read at each poll; a row with several names is one call with several results.
CALLS: tuple[tuple[tuple[str, ...], Read], ...] = (
    (
        ("temperature_c",),
        _either(  # before R570
            lambda h: nv.nvmlDeviceGetTemperatureV(h, nv.NVML_TEMPERATURE_GPU),
            lambda h: nv.nvmlDeviceGetTemperature(h, nv.NVML_TEMPERATURE_GPU),
        ),
    ),
    (("margin_c",), nv.nvmlDeviceGetMarginTemperature),
    (
        ("clocks_event_reasons",),
        _either(nv.nvmlDeviceGetCurrentClocksEventReasons, nv.nvmlDeviceGetCurrentClocksThrottleReasons),  # before R535
    ),
    (("ecc_mode", "ecc_mode_pending"), nv.nvmlDeviceGetEccMode),
    (("ecc_corrected_volatile",), _ecc(nv.NVML_MEMORY_ERROR_TYPE_CORRECTED, nv.NVML_VOLATILE_ECC)),
    (("ecc_uncorrected_volatile",), _ecc(nv.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nv.NVML_VOLATILE_ECC)),
    (("ecc_corrected_aggregate",), _ecc(nv.NVML_MEMORY_ERROR_TYPE_CORRECTED, nv.NVML_AGGREGATE_ECC)),
    (("ecc_uncorrected_aggregate",), _ecc(nv.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nv.NVML_AGGREGATE_ECC)),
    (("sram_threshold_exceeded", "sram_uncorrected_parity", "sram_uncorrected_secded"), _sram),
    (
        ("remapped_rows_corrected", "remapped_rows_uncorrected", "remapped_rows_pending", "remapped_rows_failure"),
        nv.nvmlDeviceGetRemappedRows,
    ),
    (("remap_banks_without_spares",), lambda h: nv.nvmlDeviceGetRowRemapperHistogram(h).none),
    (("channel_repair_pending", "tpc_repair_pending"), nv.nvmlDeviceGetRepairStatus),
    (("memory_unrepairable",), nv.nvmlDeviceGetUnrepairableMemoryFlag_v1),
    (
        ("fabric_state", "fabric_status", "fabric_health_mask", "fabric_health_summary"),
        _either(_fabric(nv.c_nvmlGpuFabricInfo_v3_t), _fabric(nv.c_nvmlGpuFabricInfo_v2_t)),  # before R580
    ),
    (("retired_pages_sbe",), lambda h: len(nv.nvmlDeviceGetRetiredPages(h, 0))),
    (("retired_pages_dbe",), lambda h: len(nv.nvmlDeviceGetRetiredPages(h, 1))),
    (("retired_pages_pending",), nv.nvmlDeviceGetRetiredPagesPendingStatus),
    (("power_w",), lambda h: nv.nvmlDeviceGetPowerUsage(h) / 1000),
    (("power_limit_w",), lambda h: nv.nvmlDeviceGetEnforcedPowerLimit(h) / 1000),
    (("energy_j",), lambda h: nv.nvmlDeviceGetTotalEnergyConsumption(h) / 1000),
    (("pcie_generation",), nv.nvmlDeviceGetCurrPcieLinkGeneration),
    (("pcie_width",), nv.nvmlDeviceGetCurrPcieLinkWidth),
    (("pcie_replays",), nv.nvmlDeviceGetPcieReplayCounter),
    (("persistence_mode",), nv.nvmlDeviceGetPersistenceMode),
    (("mig_mode", "mig_mode_pending"), nv.nvmlDeviceGetMigMode),
    (("processes", "pods", "processes_left_out"), _processes),
)
# Field values, all in one call. The *_tlimit_c are signed offsets in the margin's scale, never °C.
FIELDS: dict[int, str] = {
    nv.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION: "recovery_action",
    nv.NVML_FI_DEV_MEMORY_TEMP: "memory_temperature_c",
    nv.NVML_FI_DEV_TEMPERATURE_SHUTDOWN_TLIMIT: "shutdown_tlimit_c",
    nv.NVML_FI_DEV_TEMPERATURE_SLOWDOWN_TLIMIT: "slowdown_tlimit_c",
    nv.NVML_FI_DEV_TEMPERATURE_MEM_MAX_TLIMIT: "mem_max_tlimit_c",
    nv.NVML_FI_DEV_TEMPERATURE_GPU_MAX_TLIMIT: "gpu_max_tlimit_c",
    nv.NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN: "sw_thermal_ns",
    nv.NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN: "hw_thermal_ns",
    nv.NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN: "hw_power_brake_ns",
    nv.NVML_FI_DEV_PCIE_COUNT_FATAL_ERROR: "pcie_fatal_errors",
    nv.NVML_FI_DEV_PERF_POLICY_POWER: "power_violation_ns",
    nv.NVML_FI_DEV_PERF_POLICY_THERMAL: "thermal_violation_ns",
}
UNION = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")


def bit_error_rate(encoded: int) -> float:
    """NVLink 5's rates are a mantissa (bits 8 to 11) and a negative power of ten (bits 0 to 7)."""
    return float(((encoded >> 8) & 0xF) * 10.0 ** -(encoded & 0xFF))


@dataclass(frozen=True, slots=True)
class LinkField:
    """A field value of each NVLink, and how those of one GPU become one value."""

    field: int
    name: str
    folded: Callable[[list[int]], float]
    total: bool = False  # NVLink 5 gives the sum over the links itself


LINK_FIELDS = (
    LinkField(nv.NVML_FI_DEV_NVLINK_GET_STATE, "nvlink_active", lambda states: sum(state > 0 for state in states)),
    LinkField(nv.NVML_FI_DEV_NVLINK_ERROR_DL_REPLAY, "nvlink_replay", sum),
    LinkField(nv.NVML_FI_DEV_NVLINK_ERROR_DL_RECOVERY, "nvlink_recovery", sum),
    LinkField(nv.NVML_FI_DEV_NVLINK_ERROR_DL_CRC, "nvlink_crc", sum),
    LinkField(nv.NVML_FI_DEV_NVLINK_COUNT_LINK_RECOVERY_FAILED_EVENTS, "nvlink_recovery_failed", sum, total=True),
    LinkField(
        nv.NVML_FI_DEV_NVLINK_COUNT_EFFECTIVE_BER,
        "nvlink_effective_ber",
        lambda rates: max(bit_error_rate(rate) for rate in rates),
    ),
)


def versions() -> dict[str, Value]:
    """The driver's. Never a reason not to read GPUs: CUDA's needs libcuda, which a container with only the driver
    capability ``utility`` lacks, and answers LIBRARY_NOT_FOUND though NVML itself is there."""
    return {
        "driver_version": _version(nv.nvmlSystemGetDriverVersion),
        "nvml_version": _version(nv.nvmlSystemGetNVMLVersion),
        "cuda_driver_version": _version(nv.nvmlSystemGetCudaDriverVersion_v2),
    }


def _version(read: Callable[[], str | int]) -> Value:
    try:
        version = read()
    except nv.NVMLError as error:
        absent = error.value in (*UNSUPPORTED, nv.NVML_ERROR_LIBRARY_NOT_FOUND)
        return Missing.UNSUPPORTED if absent else Missing.UNREADABLE
    except Exception:  # noqa: BLE001 - a version that is no text
        return Missing.UNREADABLE
    return Missing.UNREADABLE if isinstance(version, str) and not (version and version.isprintable()) else version
