"""Boards as the library in C answers for them: what differs from an H100."""

from __future__ import annotations

from agent.model.text import normalise_pci
from tests.nvml.standin import Board

A, B = "00000000:1B:00.0", "00000000:43:00.0"
ADDRESSES = (normalise_pci(A), normalise_pci(B))

_OLD = [  # before Ampere
    *(
        f"answer nvmlDeviceGet{call} {{}} 3"
        for call in (
            "RemappedRows",
            "RowRemapperHistogram",
            "SramEccErrorStatus",
            "MigMode",
            "GpuFabricInfoV",
            "RepairStatus",
            "UnrepairableMemoryFlag_v1",
        )
    )
]
_DEGREES = [  # limits in °C and no margin
    "numbers nvmlDeviceGetTemperatureThreshold {} 92 89 95 85",
    "answer nvmlDeviceGetMarginTemperature {} 3",
    *(f"field {number} {{}} - 3" for number in (193, 194, 195, 196)),
]
_NO_LINKS = ["field 91 {} 1 0", "numbers nvmlDeviceGetNvLinkState {} 0"]
_NO_FABRIC = ["answer nvmlDeviceGetGpuFabricInfoV {} 3"]
_NO_HBM = ["field 82 {} - 3"]
_EMPTY_PEERS = ["text nvmlDeviceGetNvLinkRemotePciInfo_v2 {} "]  # as NVIDIA's public mock library has them


def h100(address: str) -> Board:
    return Board(address)


def v100(address: str, *peers: str) -> Board:
    """Linked with its peers, as far as NVML tells one of them."""
    lines = ["numbers nvmlDeviceGetArchitecture {} 5", *_OLD, *_DEGREES]
    lines += [f"text nvmlDeviceGetNvLinkRemotePciInfo_v2 {{}} {peer}" for peer in peers]
    return Board(address, "Tesla V100-SXM2-32GB", [*lines, "numbers nvmlDeviceGetNvLinkRemoteDeviceType {} 0"])


# The forms of NVIDIA's public mock library.
def a100(address: str) -> Board:
    lines = ["numbers nvmlDeviceGetArchitecture {} 7", *_DEGREES, *_NO_FABRIC, *_EMPTY_PEERS]
    return Board(address, "NVIDIA A100-SXM4-40GB", lines)


def b200(address: str) -> Board:
    lines = ["numbers nvmlDeviceGetArchitecture {} 10", "field 194 {} 5 -3", *_EMPTY_PEERS]
    return Board(address, "NVIDIA B200", lines)


def l40s(address: str) -> Board:
    lines = ["numbers nvmlDeviceGetArchitecture {} 8", *_NO_LINKS, *_NO_FABRIC, *_NO_HBM, *_EMPTY_PEERS]
    return Board(address, "NVIDIA L40S", lines)


def t4(address: str) -> Board:
    lines = ["numbers nvmlDeviceGetArchitecture {} 6", *_OLD, *_DEGREES, *_NO_HBM]
    return Board(address, "Tesla T4", [*lines, "field 91 {} 1 0", *_EMPTY_PEERS])  # says links, and where none leads


FORMS = {"a100": a100, "b200": b200, "l40s": l40s, "t4": t4}
