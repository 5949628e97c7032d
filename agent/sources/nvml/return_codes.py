"""What NVML's error codes mean for one value, one GPU, and the whole session."""

from __future__ import annotations

import pynvml as nv

from agent.model.observation import Failure

# Never there on this GPU with this driver, against a read that failed this time.
UNSUPPORTED = (
    nv.NVML_ERROR_NOT_SUPPORTED,
    nv.NVML_ERROR_FUNCTION_NOT_FOUND,
    nv.NVML_ERROR_INVALID_ARGUMENT,
    nv.NVML_ERROR_DEPRECATED,
    nv.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
)
# The GPU, whichever of its values was asked for.
SICK = (nv.NVML_ERROR_GPU_IS_LOST, nv.NVML_ERROR_RESET_REQUIRED)
# The session, whichever call met it: only another nvmlInit helps.
ENDED = (nv.NVML_ERROR_UNINITIALIZED, nv.NVML_ERROR_DRIVER_NOT_LOADED)
FAILURES = {
    nv.NVML_ERROR_LIBRARY_NOT_FOUND: (
        Failure.NO_LIBRARY,
        "libnvidia-ml.so.1 is not in this container: run it with the NVIDIA runtime, or mount the driver's libraries",
    ),
    nv.NVML_ERROR_DRIVER_NOT_LOADED: (Failure.DRIVER_NOT_LOADED, "the NVIDIA kernel module is not loaded"),
    nv.NVML_ERROR_LIB_RM_VERSION_MISMATCH: (
        Failure.LIBRARY_MISMATCH,
        "the NVML library and the kernel module are of different driver versions: a driver upgrade is under way",
    ),
    nv.NVML_ERROR_NO_PERMISSION: (
        Failure.NO_PERMISSION,
        "no permission on the NVIDIA devices: give the container /dev/nvidiactl and the GPUs",
    ),
}
