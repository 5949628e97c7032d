"""What NVML's error codes mean for one value, one GPU, and the whole session."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pynvml as nv

from agent.model.observation import Failure, Observation, Signal

NO_ADDRESS = 0  # beside NVML's codes: a GPU whose PCI address can't be read, or is another's

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
_WORDS = {
    NO_ADDRESS: "its PCI address can't be read",
    nv.NVML_ERROR_NO_PERMISSION: "no permission on its device: give the container all the GPUs",
    nv.NVML_ERROR_INSUFFICIENT_POWER: "its power cables are not connected: a person must look",
}


def words(code: int) -> str:
    """Why a GPU can't be opened."""
    sentence = _WORDS.get(code) or str(nv.NVMLError(code))
    return f"{sentence} (NVML error {code})" if code else sentence


def sick(pci: str, code: int) -> Observation:
    """What an error code of SICK says of a GPU."""
    if code == nv.NVML_ERROR_GPU_IS_LOST:
        return Observation(time.time(), "nvml", Signal.LOST, pci, raw="NVML error 15: the GPU is lost")
    raw = "NVML error 16: the GPU requires a reset"
    return Observation(time.time(), "nvml", Signal.RESET_REQUIRED, pci, raw=raw)


def left_alone(pci: str) -> Observation:
    """A GPU that is there and is not read, for another process hangs at it."""
    raw = "the driver does not answer: a call into this GPU has not returned, and until then it is left alone"
    return Observation(time.time(), "nvml", Signal.FAILED, pci, Failure.HUNG, raw=raw)


def failure(error: Exception, control: Path = Path("/dev/nvidiactl")) -> Observation:
    """Why the whole session can't go on, as a fact; never a GPU's fault by itself."""
    if not isinstance(error, nv.NVMLError):
        raw = f"NVML gave its binding an answer that can't be read: {error!r}"[:300]
        return Observation(time.time(), "nvml", Signal.FAILED, value=Failure.UNREADABLE, raw=raw)
    code = error.value
    if code == nv.NVML_ERROR_UNKNOWN and _refused(control):
        code = nv.NVML_ERROR_NO_PERMISSION  # a systemd daemon-reload took the devices from the container
    value, sentence = FAILURES.get(code, (Failure.UNREADABLE, "NVML can't be used"))
    return Observation(time.time(), "nvml", Signal.FAILED, value=value, raw=f"{sentence} (NVML error {error.value})")


def _refused(device: Path) -> bool:
    try:
        os.close(os.open(device, os.O_RDWR))
    except PermissionError:
        return True
    except OSError:
        pass
    return False
