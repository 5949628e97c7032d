"""Never healthy while nothing is seen, or while GPUs that should be there are not, or are nobody's to use."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from agent.actions.admissions import Admissions
from agent.actions.offered import offered
from agent.actions.slices import Slices
from agent.model.fault import Severity, Status, Unseen
from agent.model.observation import Failure, Observation, Signal
from agent.model.world import Offer, World
from agent.runtime.exchange import Acted
from agent.sources.nvml.pci_bus import holders, missing, slots
from tests.observe import GPU, OTHER, Judge, alive, ids, reading

PREFIXES = ("nvidia.com/",)
NO_DRA = Slices(lambda *_: (404, {}), "n1", time.monotonic)
NOBODY = Admissions(lambda *_: (403, {}), "n1", 3600, float)  # is refused, as far as may be asked
GUEST = "0000:45:00.0"  # a virtual machine's


def test_a_source_that_never_said_a_word_is_told_and_the_node_is_not_healthy() -> None:
    judge = Judge(expected=("nvml", "kmsg"))
    assert judge.each_poll(170, alive(), reading()).status is Status.UNKNOWN
    assert ids(judge.each_poll(20, alive(), reading())) == ["kmsg-silent@node"]
    assert ids(judge.after(5, alive(), alive("kmsg"), reading())) == []


def test_an_agent_that_has_dcgm_alone_is_blind_without_it() -> None:
    judge = Judge(expected=("dcgm",))
    failed = Observation(0, "dcgm", Signal.FAILED, value=Failure.ABSENT, raw="no engine answers")
    verdict = judge.after(5, failed)
    assert (verdict.status, verdict.blind["dcgm"].kind) == (Status.UNKNOWN, Unseen.FAILED)


@pytest.mark.parametrize(
    ("capacity", "allocatable", "withheld"),
    [
        ({"nvidia.com/gpu": "8"}, {"nvidia.com/gpu": "0"}, {"nvidia.com/gpu": 8}),
        ({"nvidia.com/gpu": "8"}, {}, {"nvidia.com/gpu": 8}),
        ({"nvidia.com/gpu": "8"}, {"nvidia.com/gpu": "1"}, {}),
        ({"nvidia.com/gpu": "0", "cpu": "8"}, {"nvidia.com/gpu": "0", "cpu": "0"}, {}),
        ({"nvidia.com/gpu.shared": "32"}, {"nvidia.com/gpu.shared": "0"}, {"nvidia.com/gpu.shared": 32}),
        ({"nvidia.com/mig-1g.5gb": "7"}, {"nvidia.com/mig-1g.5gb": "0"}, {"nvidia.com/mig-1g.5gb": 7}),
        # Another strategy of the device plugin: what it offered before goes minutes later.
        ({"nvidia.com/gpu": "8", "nvidia.com/mig-1g.5gb": "56"}, {"nvidia.com/mig-1g.5gb": "56"}, {}),
        ({"nvidia.com/gpu": "8", "nvidia.com/mig-1g.5gb": "0"}, {"nvidia.com/gpu": "0"}, {"nvidia.com/gpu": 8}),
        ({"nvidia.com/gpu": "8k", "nvidia.com/x": "-1"}, None, {}),
    ],
)
def test_gpus_are_withheld_where_the_kubelet_has_some_and_offers_none_of_any(
    capacity: dict[str, str], allocatable: dict[str, str] | None, withheld: dict[str, int]
) -> None:
    assert (
        offered({}, {"capacity": capacity, "allocatable": allocatable}, PREFIXES, NO_DRA, NOBODY).withheld == withheld
    )


def test_there_should_be_gpus_where_a_label_or_the_kubelet_says_so() -> None:
    has = {"capacity": {"nvidia.com/gpu": "8"}}
    assert (
        offered({"nvidia.com/gpu.present": "true"}, has, PREFIXES, NO_DRA, NOBODY).due
        == "label nvidia.com/gpu.present=true"
    )
    assert offered({}, has, PREFIXES, NO_DRA, NOBODY).due == "the kubelet's capacity of 8 nvidia.com/gpu"
    assert offered({"nvidia.com/gpu.present": "false"}, {}, PREFIXES, NO_DRA, NOBODY).due == ""


def test_what_the_kubelet_offers_counts_only_while_nobody_took_the_device_plugin_off() -> None:
    offer = Offer("a label", {"nvidia.com/gpu": 8})
    world = World("n1", "uid", offer=offer)
    assert Acted(world=world).orders(0.0).offer == offer
    assert Acted(world=world, keep_off="the GPU is being reset").orders(0.0).offer == Offer()
    paused = World("n1", "uid", labels={"nvidia.com/gpu.deploy.device-plugin": "paused-for-gpu-reset"}, offer=offer)
    assert Acted(world=paused).orders(0.0).offer == Offer()


def test_a_boards_slot_is_known_by_what_the_firmware_names_it(tmp_path: Path) -> None:
    for pci in (GPU, OTHER):
        (tmp_path / "devices" / pci).mkdir(parents=True)
        (tmp_path / "devices" / pci / "vendor").write_text("0x10de\n")
        (tmp_path / "devices" / pci / "class").write_text("0x030200\n")
    for name, address in (("7", GPU[:-2]), ("11-1", OTHER[:-2]), ("2", "0000:05:00"), ("odd", "nonsense")):
        (tmp_path / "slots" / name).mkdir(parents=True)
        (tmp_path / "slots" / name / "address").write_text(f"{address}\n")
    assert slots(tmp_path / "devices") == f"{GPU}=7,{OTHER}=11-1"
    assert slots(tmp_path / "no" / "devices") == ""


def test_a_gpu_that_no_driver_is_bound_to_is_missing_though_nobody_ever_read_it(tmp_path: Path) -> None:
    for pci, kind, driver in (
        (GPU, "0x030200", "nvidia"),
        (OTHER, "0x030200", ""),
        (GUEST, "0x030000", "vfio-pci"),
        ("0000:44:00.0", "0x068000", ""),
    ):
        (tmp_path / pci).mkdir()
        (tmp_path / pci / "vendor").write_text("0x10de\n")
        (tmp_path / pci / "class").write_text(f"{kind}\n")
        if driver:
            os.symlink(f"/sys/bus/pci/drivers/{driver}", tmp_path / pci / "driver")
    gone = missing(set(), {GPU}, holders(tmp_path))
    assert gone == {OTHER: "none", GUEST: "vfio-pci"}
    judge = Judge()
    polls = alive(gpu_count=1, missing=f"{OTHER}=none,{GUEST}=vfio-pci"), reading()
    verdict = judge.each_poll(70, *polls)
    (fault,) = verdict.faults
    assert (fault.finding.id, fault.finding.severity) == (f"gpu-missing@{OTHER}", Severity.DEGRADED)
    assert fault.finding.message == "an NVIDIA GPU is bound to no driver"
