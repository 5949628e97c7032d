"""What a driver's NVML lacks, branch by branch: by the change log of NVIDIA's NVML reference, from R470 on."""

from __future__ import annotations

import pynvml as nv

# The call and the first branch that has it. What none of these is every one of them has.
SINCE = {
    "nvmlDeviceGetComputeRunningProcesses_v3": 510,
    "nvmlDeviceGetCurrentClocksEventReasons": 535,
    "nvmlDeviceGetSramEccErrorStatus": 535,
    "nvmlDeviceGetGpuFabricInfoV": 550,
    "nvmlDeviceGetMarginTemperature": 570,
    "nvmlDeviceGetTemperatureV": 570,
    "nvmlDeviceGetRepairStatus": 580,
    "nvmlDeviceGetUnrepairableMemoryFlag_v1": 590,
}
# What is asked in their place where they are not there: all branches have these.
OLDER = {
    "nvmlDeviceGetComputeRunningProcesses_v3": "nvmlDeviceGetComputeRunningProcesses_v2",
    "nvmlDeviceGetCurrentClocksEventReasons": "nvmlDeviceGetCurrentClocksThrottleReasons",
    "nvmlDeviceGetTemperatureV": "nvmlDeviceGetTemperature",
}
FIELDS_SINCE = {
    nv.NVML_FI_DEV_NVLINK_GET_STATE: 525,
    nv.NVML_FI_DEV_NVLINK_ERROR_DL_REPLAY: 525,
    nv.NVML_FI_DEV_NVLINK_ERROR_DL_RECOVERY: 525,
    nv.NVML_FI_DEV_NVLINK_ERROR_DL_CRC: 525,
    nv.NVML_FI_DEV_PCIE_COUNT_FATAL_ERROR: 535,
    nv.NVML_FI_DEV_TEMPERATURE_SHUTDOWN_TLIMIT: 535,
    nv.NVML_FI_DEV_TEMPERATURE_SLOWDOWN_TLIMIT: 535,
    nv.NVML_FI_DEV_TEMPERATURE_MEM_MAX_TLIMIT: 535,
    nv.NVML_FI_DEV_TEMPERATURE_GPU_MAX_TLIMIT: 535,
    nv.NVML_FI_DEV_NVLINK_COUNT_LINK_RECOVERY_FAILED_EVENTS: 550,
    nv.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION: 565,
    nv.NVML_FI_DEV_NVLINK_COUNT_EFFECTIVE_BER: 570,
    nv.NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN: 580,
    nv.NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN: 580,
    nv.NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN: 580,
}
FABRIC_V3_SINCE = 580  # before, nvmlDeviceGetGpuFabricInfoV knows the second version of its structure only
BRANCHES = (470, 510, 525, 535, 550, 570, 580, 590)


def lacking(branch: int) -> frozenset[str]:
    """The calls that this branch does not have yet."""
    return frozenset(call for call, since in SINCE.items() if since > branch)


def without_fields(branch: int) -> frozenset[int]:
    """The field values that this branch does not know."""
    return frozenset(number for number, since in FIELDS_SINCE.items() if since > branch)
