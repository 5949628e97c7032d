"""What the driver and the bus say of GPUs besides Xids, in every form, and words that only look alike."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from agent.model.observation import Signal, Value, Words
from agent.sources.kmsg.lines import Facts
from agent.sources.nvml.pci_bus import behind
from tests.observe import GPU, OTHER, Judge, alive, reading, xid

A, B = "0000:0a:00.0", "0000:b3:00.0"
INVALID = "NVRM: This PCI I/O region assigned to your NVIDIA device is invalid:"
# A message, the address that it names, and what it says; None: the GPU is lost.
SAID: tuple[tuple[str, str, Words | None], ...] = (
    (f"NVRM: GPU {A}: GPU has fallen off the bus.", A, None),
    (f"NVRM: GPU at {A} has fallen off the bus.", A, None),
    ("NVRM: GPU at PCI:0000:0A:00 has fallen off the bus.", A, None),
    (f"NVRM: GPU {A}: RmInitAdapter failed! (0x24:0x72:1568)", A, Words.INIT_FAILED),
    (f"NVRM: GPU {A}: rm_init_adapter failed, device minor number 5", A, Words.INIT_FAILED),
    ("NVRM: RmInitAdapter failed! (0x62:0x55:2130)", "", Words.INIT_FAILED),
    ("NVRM: rm_init_adapter(0) failed", "", Words.INIT_FAILED),
    ("NVRM: rm_init_adapter failed for device bearing minor number 3", "", Words.INIT_FAILED),
    ("NVRM: RmInitAdapter: Cannot initialize GSP firmware RM", "", Words.INIT_FAILED),
    ("NVRM: GPU0 kgspInitRm_IMPL: Max GSP-RM boot attempts exceeded: 4/4", "", Words.INIT_FAILED),
    ("NVRM: kfspBoot_GH100: GSP-FMC boot attempts exceeded", "", Words.INIT_FAILED),
    (f"NVRM: GPU {A}: GPU does not have the necessary power cables connected.", A, Words.POWER_CABLE),
    (f"NVRM: GPU {A}: RmInitAdapter failed! (0x24:0x1c:1603)", A, Words.POWER_CABLE),
    ("NVRM: RmInitAdapter failed! (0x24:0x1C:1217)", "", Words.POWER_CABLE),
    (f"{INVALID}\nNVRM: BAR1 is 0M @ 0x0 (PCI:{A})", A, Words.UNUSABLE),
    (f"{INVALID} NVRM: BAR0 is 0M @ 0x0 (PCI:{A})", A, Words.UNUSABLE),
    (f"NVRM: BAR5 is 0M @ 0x0 (PCI:{A})", A, Words.UNUSABLE),
    (f"nvidia: probe of {A} failed with error -1", A, Words.UNUSABLE),
    (f"nvidia {A}: probe with driver nvidia failed with error -1", A, Words.UNUSABLE),
    ("NVRM: The NVIDIA probe routine failed for 1 device(s).", "", Words.UNUSABLE),
    ("NVRM: osInitNvMapping: *** Cannot attach gpu", "", Words.UNUSABLE),
    ("NVRM: GPU0 osInitNvMapping: *** Cannot attach gpu", "", Words.UNUSABLE),
    (
        "NVRM: nvAssertOkFailedNoLog: Assertion failed: Reset required [NV_ERR_RESET_REQUIRED] (0x0000006B) returned "
        "from status @ kernel_channel.c:2874",
        "",
        Words.RESET_REQUIRED,
    ),
    (
        "NVRM: GPU3 nvCheckOkFailedNoLog: Check failed: Reset required [NV_ERR_RESET_REQUIRED] (0x00000062)",
        "",
        Words.RESET_REQUIRED,
    ),
    (
        "NVRM: nvAssertOkFailedNoLog: Assertion failed:\n      Reset required [NV_ERR_RESET_REQUIRED] (0x00000062)",
        "",
        Words.RESET_REQUIRED,
    ),
    (
        "NVRM: GPU5 nvCheckOkFailedNoLog: Check failed: GPU lost from the bus [NV_ERR_GPU_IS_LOST] (0x0000000F)",
        "",
        Words.GPU_LOST,
    ),
    ("NVRM: Check failed: GPU lost from the bus [NV_ERR_GPU_IS_LOST] (0x0000000F)", "", Words.GPU_LOST),
    ("NVRM: GPU lost from the bus [NV_ERR_GPU_IS_LOST] (0x0000000F)", "", Words.GPU_LOST),
    (f"nvidia {A}: AER: can't recover (no error_detected callback)", A, Words.LINK_GONE),
    (f"nvidia {A}: PCIe Bus Error: severity=Uncorrected (Fatal), type=Transaction Layer", A, Words.LINK_GONE),
    (f"nvidia {A}: AER: PCIe Bus Error: severity=Uncorrectable (Fatal), type=Data Link", A, Words.LINK_GONE),
    (
        "nvidia-modeset: ERROR: GPU:0: Error while waiting for GPU progress: 0x0000c77d:0 2:0:4048:4040",
        "",
        Words.DISPLAY_HUNG,
    ),
    (
        "NVRM: GPU2 nvGpuOpsReportFatalError: uvm encountered global fatal error 0x60, requiring os reboot to recover.",
        "",
        Words.UVM_FATAL,
    ),
)
# A failed probe as the driver prints it, line by line, and what its end says.
PROBES: tuple[tuple[tuple[str, ...], Words | None], ...] = (
    (
        (
            f"NVRM: The NVIDIA GPU {B}",
            "NVRM: (PCI ID: 10de:26b5) installed in this system has",
            "NVRM: fallen off the bus and is not responding to commands.",
        ),
        None,
    ),
    (
        (
            f"NVRM: The NVIDIA GPU {B} (PCI ID: 10de:11c6)",
            "NVRM: installed in this system is not supported by the",
            "NVRM: NVIDIA 580.65.06 driver release.",
            "NVRM: Please see 'Appendix A - Supported NVIDIA GPU Products'",
        ),
        Words.UNUSABLE,
    ),
    (
        (
            f"NVRM: The NVIDIA GPU {B} (PCI ID: 10de:2c58)",
            "NVRM: installed in this system requires use of the NVIDIA open kernel modules.",
        ),
        Words.OPEN_MODULES,
    ),
)
# Words that mean nothing for a GPU's health, each as a record.
LOOK_ALIKE = (
    "NVRM: GPU0 GSP heartbeat 0 since boot",
    "NVRM: GPU0 _kgspRpcRecvPoll: GSP RM heartbeat 0 since boot, reset required by nobody",
    "NVRM: dmaAllocMapping_GM107: can't alloc VA space for mapping.",
    "NVRM: nvAssertOkFailedNoLog: Assertion failed: Out of memory [NV_ERR_NO_MEMORY] (0x00000051) returned from BAR1",
    "NVRM: kbusMapFbAperture: BAR1 out of memory",
    "NVRM: GPU at 0000:1b:00.0 has software scheduler DISABLED with policy BEST_EFFORT on GR",
    "NVRM: GPU at PCI:0000:1b:00: GPU-bc0fa0b9-4eac-4d2d-a1a1-d5c7b0f8a111",
    "NVRM: GPU Board Serial Number: 1652522002411",
    "nvidia 0000:1b:00.0: PCIe Bus Error: severity=Corrected, type=Physical Layer, (Receiver ID)",
    "nvidia 0000:1b:00.0: AER: PCIe Bus Error: severity=Correctable, type=Data Link Layer, (Transmitter ID)",
    "nvidia 0000:1b:00.0: PCIe Bus Error: severity=Uncorrected (Non-Fatal), type=Transaction Layer, (Requester ID)",
    "pcieport 0000:16:01.0: AER: Corrected error received: 0000:1b:00.0",
    "pcieport 0000:00:1d.0: AER: Uncorrectable (Fatal) error message received from 0000:05:00.0",
    "pcieport 0000:00:1d.0: AER: device recovery successful",
    "mlx5_core 0000:05:00.0: AER: can't recover (no error_detected callback)",
    "xhci_hcd 0000:3e:00.0: Unable to change power state from D3cold to D0, device inaccessible",
    "nvidia-nvlink: Nvlink Core is being initialized, major device number 511",
    "nvidia-vgpu-mgr[4711]: error: vmiop_log: NVOS status 0x51",
    "NVRM: The NVIDIA vGPU 0000:1b:00.0 (PCI ID: 10de:20b5)",
    "NVRM: installed in this system is not supported by open",
    "NVRM: nvidia.ko.",
    "NVRM: The NVIDIA probe routine was not called for 1 device(s).",
    "NVRM: None of the NVIDIA devices were initialized.",
    "NVRM: fallen off the bus and is not responding to commands.",  # of no GPU that was named
    "NVRM: GPU 0000:1b:00.0 is already bound to vfio-pci",
    "NVRM: Persistence mode is deprecated and will be removed in a future release.",
    "misc dxg: dxgk: dxgkio_query_adapter_info: Ioctl failed: -22",
    "nvidia-modeset: WARNING: GPU:0: Lost display notification (0:0x00000000); continuing.",
)


def fact(pci: str, words: Words | None) -> tuple[Signal, str, Value, dict[str, Value]]:
    return Signal.DRIVER if words else Signal.LOST, pci, words, {}


def said(*records: str) -> list[tuple[Signal, str, Value, dict[str, Value]]]:
    facts = Facts()
    return [one for record in records for one in facts.of(record)]


@pytest.mark.parametrize(("text", "pci", "words"), SAID)
def test_every_form_of_the_drivers_words_is_understood(text: str, pci: str, words: Words | None) -> None:
    assert said(text) == [fact(pci, words)]


@pytest.mark.parametrize(("lines", "words"), PROBES)
def test_a_failed_probe_is_understood_in_one_record_or_in_several(lines: tuple[str, ...], words: Words | None) -> None:
    told = [fact(B, words)]
    assert said(*lines) == told
    bare = (lines[0], *(line.removeprefix("NVRM: ") for line in lines[1:]))
    for joint in ("\n", "\\x0a", "#012", " #012", "\n               ", " "):
        assert said(joint.join(lines)) == said(joint.join(bare)) == told, joint
    noise = ["usb 1-1: new device", "NVRM: GPU Board Serial Number: 1", "audit: type=1400", "pcieport 0000:00:01.0: x"]
    assert said(lines[0], *noise * 4, *lines[1:2], *noise * 4, *lines[2:], *noise) == told, "others' records in between"
    assert said(lines[0], *noise * 20, *lines[1:]) == [], "not the end of what began so long before"


def test_of_two_probes_each_end_is_the_one_that_began_before_it() -> None:
    (lost, _), (refused, _), _ = PROBES
    other = tuple(line.replace(B, A) for line in refused)
    assert said(*lost, *other) == [fact(B, None), fact(A, Words.UNUSABLE)]


def test_no_word_that_looks_alike_states_anything_in_any_order() -> None:
    dice, records = random.Random(11), list(LOOK_ALIKE)
    for _ in range(200):
        dice.shuffle(records)
        assert said(*records) == []


def test_no_sequence_of_look_alikes_and_application_errors_withdraws() -> None:
    dice = random.Random(12)
    for _ in range(40):
        judge, facts = Judge(expected=("nvml", "kmsg")), Facts()
        for _ in range(30):
            seen = [xid(dice.choice((13, 31, 43, 45, 68, 69)), dice.choice((GPU, OTHER)), "kmsg")]
            for text in dice.sample(LOOK_ALIKE, 4):
                assert list(facts.of(text)) == []
            polls = (reading(GPU), reading(OTHER), alive(), alive("kmsg"))
            assert not judge.after(dice.choice((0.1, 1, 5)), *seen, *polls).withdraw


def test_a_ports_fatal_error_is_told_of_the_gpus_behind_it_and_of_no_other_device(tmp_path: Path) -> None:
    port = tmp_path / "pci0000:16" / "0000:16:01.0"
    for gpu in (A, B):
        at = (port if gpu == A else tmp_path / "pci0000:b0" / "0000:b0:01.0") / gpu
        at.mkdir(parents=True)
        (at / "vendor").write_text("0x10de\n")
        (at / "class").write_text("0x030200\n")
    bus = tmp_path / "devices"
    bus.mkdir()
    for device in tmp_path.glob("pci*/*/*"):
        (bus / device.name).symlink_to(device)
    facts = Facts(lambda address: behind(address, bus))
    gone = [fact(A, Words.LINK_GONE)]
    for text in (
        "pcieport 0000:16:01.0: AER: Uncorrected (Fatal) error received: 0000:16:01.0",
        f"pcieport 0000:16:01.0: AER: Multiple Uncorrectable (Fatal) error message received from {A}",
        "pcieport 0000:16:01.0: PCIe Bus Error: severity=Uncorrected (Fatal), type=Transaction Layer, (Requester ID)",
        "pcieport 0000:16:01.0: AER: PCIe Bus Error: severity=Uncorrectable (Fatal), type=Data Link Layer",
    ):
        assert list(facts.of(text)) == gone, text
    for text in (
        "pcieport 0000:17:01.0: AER: Uncorrected (Fatal) error received: 0000:17:01.0",
        "pcieport 0000:16:01.0: AER: Uncorrected (Fatal) error received: 0000:05:00.0",
        "pcieport 0000:16:01.0: AER: Uncorrected (Non-Fatal) error received: 0000:16:01.0",
        "pcieport 0000:16:01.0: AER: Corrected error received: 0000:16:01.0",
    ):
        assert list(facts.of(text)) == [], text
    assert list(Facts(lambda address: behind(address, tmp_path / "none")).of("pcieport 0000:16:01.0: x")) == []
