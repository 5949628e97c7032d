"""The PCI bus by the kernel's word: which NVIDIA GPUs are on it, and which driver holds each."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from agent.model.text import normalise_pci

SYSFS = Path("/sys/bus/pci/devices")
ABSENT, NVIDIA, UNBOUND, UNKNOWN = "absent", "nvidia", "none", "unknown"
_NVIDIA = "0x10de"
_DISPLAY = ("0x0300", "0x0302")  # VGA and 3D controllers; the rest are audio, USB and bridges


def holders(devices: Path) -> Mapping[str, str] | None:
    """PCI address → its driver, or ``none``; None where sysfs can't be read."""
    try:
        found = sorted(devices.iterdir())
    except OSError:
        return None
    return {device.name: _driver(device) for device in found if _is_gpu(device)}


def behind(address: str, devices: Path = SYSFS) -> Iterator[str]:
    """The NVIDIA GPUs at a PCI address, or behind the port that is there."""
    for pci in holders(devices) or ():
        if address in (devices / pci).resolve().parts:
            yield pci


def _is_gpu(device: Path) -> bool:
    try:
        vendor, kind = ((device / name).read_text(encoding="ascii").strip() for name in ("vendor", "class"))
    except (OSError, UnicodeDecodeError):
        return False
    return vendor == _NVIDIA and kind[:6] in _DISPLAY


def _driver(device: Path) -> str:
    try:
        return (device / "driver").readlink().name
    except OSError:
        return UNBOUND


def slots(devices: Path) -> str:
    """The slots of boards as the firmware names them: ``0000:1b:00.0=7,…``; empty where it names none."""
    named = dict[str, str]()
    for slot in sorted(devices.parent.glob("slots/*")):
        with contextlib.suppress(OSError, ValueError):
            named[normalise_pci((slot / "address").read_text(encoding="ascii"))] = slot.name
    return ",".join(f"{pci}={named[pci]}" for pci in sorted(holders(devices) or ()) if pci in named)


def missing(ever: set[str], found: set[str], held: Mapping[str, str] | None) -> dict[str, str]:
    """Each GPU that NVML doesn't enumerate, and did before or that is on the bus, with the driver that holds it."""
    if held is None:
        return dict.fromkeys(sorted(ever - found), UNKNOWN)
    return {pci: held.get(pci, ABSENT) for pci in sorted((ever | held.keys()) - found)}
