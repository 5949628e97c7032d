"""What the judge makes of the driver's other words: whom it blames, who is asked, and what a person does."""

from __future__ import annotations

from itertools import permutations

import pytest

from agent.diagnosis.advice import next_step
from agent.diagnosis.rules.xid import CATALOG
from agent.model.fault import Severity
from agent.model.observation import Observation, Signal
from agent.model.remedy import Remedy
from agent.sources.kmsg.lines import Facts
from tests.observe import GPU, OTHER, Judge, alive, ids, lost, reading

# NVIDIA's nverror.h (595.45.04) has these and no more; 0, 1, 2 and the codes between are older than it.
PUBLIC = (13, 14, 16, *range(19, 24), *range(27, 37), *range(39, 49), *range(58, 66), *range(68, 106), 108, 110)
PUBLIC += tuple(range(119, 177))
LOST = "NVRM: GPU 0000:1b:00.0: GPU has fallen off the bus."
CABLE = "NVRM: GPU 0000:1b:00.0: GPU does not have the necessary power cables connected."
FAILED = "NVRM: GPU 0000:1b:00.0: RmInitAdapter failed! (0x24:0x1c:1603)"
MODULES = (
    "NVRM: The NVIDIA GPU 0000:1b:00.0 (PCI ID: 10de:2c58)\n"
    "NVRM: installed in this system requires use of the NVIDIA open kernel modules."
)
MINOR = "NVRM: GPU 0000:1b:00.0: rm_init_adapter failed, device minor number 0"
SOME_LOST = "NVRM: nvCheckOkFailedNoLog: Check failed: GPU lost from the bus [NV_ERR_GPU_IS_LOST] (0x0000000F)"
SOME_RESET = "NVRM: nvAssertOkFailedNoLog: Assertion failed: Reset required [NV_ERR_RESET_REQUIRED] (0x0000006B)"


def kernel(*records: str) -> list[Observation]:
    facts = Facts()
    return [Observation(0, "kmsg", *fact, raw=text) for text in records for fact in facts.of(text)]


def polled() -> tuple[Observation, ...]:
    return reading(GPU), reading(OTHER), alive(), alive("kmsg")


def test_every_code_of_the_public_header_has_a_name() -> None:
    assert [code for code in (*PUBLIC, 177, 185) if code not in CATALOG] == []
    graves = {(CATALOG[code].row.severity, CATALOG[code].row.remedy) for code in (119, 175)}
    assert graves == {(Severity.FATAL, Remedy.RESET_GPU)}


@pytest.mark.parametrize(
    ("records", "begins"),
    [
        ((CABLE, FAILED, MINOR), "power the node off and connect"),
        ((FAILED, MINOR), "power the node off and connect"),
        ((MODULES, MINOR), "install the driver with NVIDIA's open kernel modules"),
        (("NVRM: Xid (PCI:0000:1b:00): 54, Power",), "power the node off and connect"),
    ],
)
def test_what_only_a_person_can_mend_asks_for_no_reboot_in_any_order(records: tuple[str, ...], begins: str) -> None:
    for order in permutations(records):
        judge = Judge(expected=("nvml", "kmsg"))
        for text in order:
            verdict = judge.after(0.5, *kernel(text), *polled())
        (fault,) = verdict.faults
        assert verdict.remedy is Remedy.CONTACT_SUPPORT, order
        assert begins in next_step(fault)
        assert "reboot the node" not in next_step(fault)


def test_the_gravest_of_several_words_for_one_gpu_wins_in_any_order() -> None:
    words = (LOST, MINOR, MODULES, SOME_LOST, "NVRM: Xid (PCI:0000:1b:00): 31, pid=7, name=x, MMU Fault")
    for order in permutations(words):
        judge = Judge(expected=("nvml", "kmsg"))
        for text in order:
            verdict = judge.after(0.3, *kernel(text), *polled())
        worst = verdict.faults[0].finding
        assert (worst.id, worst.severity, verdict.remedy) == (f"gpu-lost@{GPU}", Severity.FATAL, Remedy.REBOOT_NODE)
        assert [fault.finding.id for fault in verdict.faults[1:]] == [f"xid-31@{GPU}"], order


@pytest.mark.parametrize(("text", "rule"), [(SOME_LOST, "gpu-lost"), (SOME_RESET, "gpu-reset-required")])
def test_a_word_without_an_address_is_the_nodes_until_nvml_names_the_gpu(text: str, rule: str) -> None:
    judge = Judge(expected=("nvml", "kmsg"))
    verdict = judge.after(0, *kernel(text), *polled())
    (fault,) = verdict.faults
    assert (ids(verdict), verdict.withdraw) == ([f"{rule}@node"], False)
    assert "the driver does not say which GPU, and NVML is asked" in fault.finding.message
    assert "ask 'nvidia-smi' on the node which GPU it is" in next_step(fault)
    named = lost(OTHER) if rule == "gpu-lost" else Observation(0, "nvml", Signal.RESET_REQUIRED, OTHER)
    for _ in range(4):
        verdict = judge.after(5, reading(GPU), named, alive(), alive("kmsg"))
    assert (ids(verdict), verdict.withdraw) == ([f"{rule}@{OTHER}"], True)
    assert [one.finding.id for one in verdict.faults[0].joined] == [f"{rule}@node"]


def test_a_milder_fault_of_another_gpu_is_not_taken_for_the_one_that_was_meant() -> None:
    judge = Judge(expected=("nvml", "kmsg"))
    notice = "NVRM: Xid (PCI:0000:43:00): 31, pid=7, name=x, MMU Fault"
    verdict = judge.after(0, *kernel(SOME_RESET, notice), *polled())
    assert ids(verdict) == ["gpu-reset-required@node", f"xid-31@{OTHER}"]
