"""Nothing of ours is called as a neighbour's is: else two would write, or two alerts would fire, for one thing."""

from __future__ import annotations

from agent.model import names
from agent.model.neighbours import ASKED, NEIGHBOURS, NOT_ASKED, Preset
from tests.status.test_metrics import GOLDEN

# As their sources have them: node-problem-detector, NVSentinel, AKS, GKE's plugin, GCM, EKS, kubelet.
CONDITIONS = {
    *("KernelDeadlock", "ReadonlyFilesystem", "FrequentKubeletRestart", "XidCriticalError", "GcmXidErrorsProblem"),
    *("GpuMemWatch", "GpuThermalWatch", "GpuPcieWatch", "GpuPowerWatch", "GpuInforomWatch", "GpuSmWatch"),
    *("GpuNvlinkWatch", "GpuMcuWatch", "GpuPmuWatch", "GpuDriverWatch", "SysLogsXIDError", "SysLogsSXIDError"),
    *("SysLogsGPUFallenOff", "GpuThermalMarginWatch", "GpuDcgmConnectivityFailure", "GPUMissing", "XIDErrors"),
    *("NVLinkStatusInactive", "IBLinkFlapping", "UnhealthyNvidiaDevicePlugin", "UnhealthyNvidiaDCGMServices"),
    *("AcceleratedHardwareReady", "KernelReady", "NetworkingReady", "StorageReady", "ContainerRuntimeReady", "Ready"),
}
METRICS = ("DCGM_", "problem_", "fault_quarantine_", "node_drainer_", "janitor_", "accelerator_nvidia_", "kube_")


def test_no_condition_that_is_written_by_default_is_a_neighbours() -> None:
    assert not {names.UNHEALTHY, names.DEGRADED, names.REPLACEMENT} & CONDITIONS


def test_no_metric_is_a_neighbours() -> None:
    told = [line.split()[2] for line in GOLDEN.read_text().splitlines() if line.startswith("# TYPE")]
    assert told
    assert not [name for name in told if name.startswith(METRICS)]


def test_by_no_reason_of_ours_does_karpenter_reboot_a_node_that_needs_another() -> None:
    """Its provider for AWS (1.15.2) looks for the XID in it, and reboots for some where that is switched on."""
    assert not [reason for reason in (ASKED, NOT_ASKED) if "XID" in reason]


def test_every_preset_has_a_row_and_writes_something_that_its_neighbour_reads() -> None:
    assert {*NEIGHBOURS} == {*Preset}
    # By DRA what is written is a rule, and no name on the Node.
    assert {preset for preset, row in NEIGHBOURS.items() if not (row.names or row.replaces)} == {Preset.DRA}
