"""What nvidia-smi's exit codes say about a reset (its manual, "RETURN VALUE"), and whether another try can help."""

from __future__ import annotations

EXIT_CODES = {
    2: ("nvidia-smi was given a bad argument", False),
    3: ("this GPU can't be reset in this way", False),
    4: ("no permission to reset", False),
    6: ("the GPU was not found", True),
    8: ("the GPU's external power is not connected", False),
    9: ("the driver is not loaded", True),
    10: ("the kernel found an interrupt issue with the GPU", True),
    12: ("the NVML library is not in the Job's container", False),
    13: ("the NVML library lacks a function", False),
    14: ("the InfoROM is corrupted", False),
    15: ("the GPU has fallen off the bus", False),
}
