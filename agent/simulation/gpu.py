"""One simulated GPU: its state, and the profiles of boards that there are."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from agent.model.text import normalise_pci

IDLE_C = 34.0
POWER_W = 96.0
_EPOCH_J = 1_000_000.0  # energy used before the simulation began
_KEPT = (
    "temperature_c",
    "ecc_uncorrected",
    "ecc_uncorrected_aggregate",
    "recovery_action",
    "lost",
    "reset_required",
    "numbers",
    "energy_base_j",
    "epoch",
)


@dataclass(slots=True)
class SimulatedGpu:
    """The state of one GPU; the library answers from it and injections change it."""

    index: int
    pci: str  # as NVML has it: 00000000:1B:00.0
    uuid: str
    name: str
    architecture: int
    temperature_c: float = IDLE_C
    ecc_uncorrected: int = 0
    ecc_uncorrected_aggregate: int = 0
    recovery_action: int = 0
    lost: bool = False
    reset_required: bool = False
    energy_base_j: float = _EPOCH_J
    epoch: float = field(default_factory=time.monotonic)  # the machine's, so that a new process counts on
    numbers: dict[str, int] = field(default_factory=dict)  # signals that have another value than a healthy GPU's
    nvlinks: int = 18
    peers: tuple[str, ...] = ()  # where its NVLinks lead, in turn, as NVML has it; nowhere else: to an NVSwitch
    thresholds: bool = False  # heat by absolute limits (up to Ampere), not by a margin
    mig: bool = False
    processes: set[int] = field(default_factory=set)  # pids that compute on it
    hanging: set[str] = field(default_factory=set)  # C symbols that don't return
    unsupported: frozenset[str] = frozenset()  # C symbols that answer NOT_SUPPORTED
    unreadable: frozenset[str] = frozenset()  # C symbols that answer UNKNOWN

    @property
    def energy_j(self) -> float:
        return self.energy_base_j + POWER_W * (time.monotonic() - self.epoch)

    @property
    def address(self) -> str:
        return normalise_pci(self.pci)

    def kept(self) -> dict[str, Any]:
        """What outlives the process that simulates it: all but calls that hang, which the next one makes anew."""
        return {**{name: getattr(self, name) for name in _KEPT}, "processes": sorted(self.processes)}

    def restore(self, kept: Mapping[str, Any]) -> None:
        for name in _KEPT:
            setattr(self, name, kept[name])
        self.processes = set(kept["processes"])

    def new_epoch(self) -> None:
        """What a reset or a reboot does to a GPU's counters and flags."""
        self.energy_base_j, self.epoch = 0.0, time.monotonic()
        self.ecc_uncorrected = self.recovery_action = 0
        self.temperature_c, self.lost, self.reset_required = IDLE_C, False, False
        self.numbers.clear()
        self.processes.clear()
        self.hanging.clear()

    def number(self, signal: str, healthy: int = 0) -> int:
        return self.numbers.get(signal, healthy)


_BEFORE_AMPERE = frozenset(
    {
        "nvmlDeviceGetRemappedRows",
        "nvmlDeviceGetRowRemapperHistogram",
        "nvmlDeviceGetMigMode",
        "nvmlDeviceGetSramEccErrorStatus",
        "nvmlDeviceGetGpuFabricInfoV",
    }
)
SIGNALS = frozenset(
    {
        "pcie_width",
        "pcie_replays",
        "pcie_fatal_errors",
        "retired_pages_pending",
        "persistence_mode",
        "ecc_mode",
        "ecc_corrected_volatile",
        "remapped_rows_corrected",
        "remapped_rows_uncorrected",
        "remapped_rows_pending",
        "remapped_rows_failure",
        "remap_banks_without_spares",
        "sram_threshold_exceeded",
        "inforom_corrupt",
        "fabric_state",
        "fabric_health_mask",
        "fabric_health_summary",
        "memory_temperature_c",
        "hw_thermal_ns",
        "sw_thermal_ns",
        "hw_power_brake_ns",
        "nvlink_active",
        "nvlink_replay",
        "nvlink_recovery",
        "nvlink_crc",
        "nvlink_recovery_failed",
        "nvlink_effective_ber",
    }
)
"""What an injection may set on a simulated GPU besides the faults that have a name."""


def h100_8(baseboards: int = 1) -> list[SimulatedGpu]:
    """The profile ``h100-8``: eight SXM5 boards at the addresses of a common HGX system."""
    buses = ("1B", "43", "52", "61", "9D", "C3", "D1", "DF")
    addresses = [f"{domain:08X}:{bus}:00.0" for domain in range(baseboards) for bus in buses]
    return [
        SimulatedGpu(
            i, address, f"GPU-5e1f0000-0000-4000-8000-0000000000{i:02d}", "NVIDIA H100 80GB HBM3", architecture=9
        )
        for i, address in enumerate(addresses)
    ]


def h100_16() -> list[SimulatedGpu]:
    """The profile ``h100-16``: two such baseboards, the second in a PCI domain of its own."""
    return h100_8(baseboards=2)


def a100_8_mig() -> list[SimulatedGpu]:
    """The profile ``a100-8-mig``: eight Ampere boards with MIG on, which hides the volatile counters and remaps."""
    gpus = h100_8()
    for gpu in gpus:
        gpu.name, gpu.architecture, gpu.nvlinks = "NVIDIA A100-SXM4-80GB", 7, 12
        gpu.thresholds = gpu.mig = True
        gpu.unsupported = frozenset({"nvmlDeviceGetGpuFabricInfoV"})
    return gpus


def v100_8() -> list[SimulatedGpu]:
    """The profile ``v100-8``: eight Volta boards, two baseboards of four that are linked each with each."""
    gpus = h100_8()
    for gpu in gpus:
        gpu.name, gpu.architecture, gpu.nvlinks, gpu.thresholds = "Tesla V100-SXM2-32GB", 5, 6, True
        first = gpu.index // 4 * 4
        gpu.peers = tuple(other.pci for other in gpus[first : first + 4] if other is not gpu) * 2
        gpu.unsupported = _BEFORE_AMPERE
    return gpus


def t4_1() -> list[SimulatedGpu]:
    """The profile ``t4-1``: one Turing board, absolute limits, retired pages, no containment, no NVLink."""
    gpu = SimulatedGpu(0, "00000000:00:1E.0", "GPU-5e1f0000-0000-4000-8000-000000000100", "Tesla T4", architecture=6)
    gpu.nvlinks, gpu.thresholds = 0, True
    gpu.unsupported = _BEFORE_AMPERE
    return [gpu]
