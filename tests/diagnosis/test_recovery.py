"""The driver's recovery action beside other words: whose word counts, and which GPU is to blame."""

from __future__ import annotations

from itertools import permutations

from agent.model.fault import Severity, Verdict
from agent.model.observation import Observation
from agent.model.remedy import Remedy
from tests.observe import GPU, OTHER, Judge, alive, ids, lost, reading, xid

SOURCES = ("nvml", "kmsg")
THIRD = "0000:61:00.0"


def action(number: int, pci: str = GPU) -> Observation:
    return xid(154, pci, "kmsg", values={"recovery_action": number})


def healthy() -> Judge:
    judge = Judge(expected=SOURCES)
    judge.after(0, alive(), alive("kmsg"), *(reading(pci) for pci in (GPU, OTHER, THIRD)))
    return judge


def asking(judge: Judge, number: int, *pcis: str, seconds: float = 10) -> Verdict:
    """After so many seconds of polls in which these GPUs read that action."""
    read = [reading(pci, recovery_action=number if pci in pcis else 0) for pci in (GPU, OTHER, THIRD)]
    return judge.each_poll(seconds, alive(), alive("kmsg"), *read)


def blamed(verdict: Verdict) -> set[str]:
    return {f.finding.pci for f in verdict.standing if f.finding.severity is Severity.FATAL}


def test_an_action_that_reaches_no_lost_gpu_never_lowers_its_remedy() -> None:
    for words in permutations((xid(79, source="kmsg"), action(1), lost(source="kmsg"))):
        judge = healthy()
        for word in words:
            verdict = judge.after(0.001, word)
        assert (verdict.remedy, verdict.withdraw) == (Remedy.REBOOT_NODE, True)
        assert asking(judge, 1, GPU, seconds=60).remedy is Remedy.REBOOT_NODE
        leads = {f.finding.rule: f.finding.remedy for f in verdict.standing}
        assert leads["xid-79"] is leads["gpu-lost"] is Remedy.REBOOT_NODE


def test_of_gpus_that_all_ask_for_a_reboot_only_the_one_with_a_fault_is_to_blame() -> None:
    for code in (79, 119, 31):
        judge = healthy()
        judge.after(1, xid(code, OTHER, "kmsg"), *(action(2, pci) for pci in (GPU, OTHER, THIRD)))
        verdict = asking(judge, 2, GPU, OTHER, THIRD, seconds=120)
        assert verdict.remedy is Remedy.REBOOT_NODE
        if code != 31:
            assert blamed(verdict) == {OTHER} == judge.memory.onsets.keys()
            (head,) = (f for f in verdict.faults if f.finding.severity is Severity.FATAL)
            assert {f.finding.pci for f in head.joined} == {GPU, OTHER, THIRD}
        else:  # a program's error is no evidence: the first that asked tells it
            assert len(blamed(verdict)) == 1 == len(judge.memory.onsets)


def test_two_gpus_with_faults_of_their_own_are_both_to_blame() -> None:
    judge = healthy()
    judge.after(1, xid(119, OTHER, "kmsg"), xid(48, THIRD, "kmsg"), *(action(2, pci) for pci in (GPU, OTHER, THIRD)))
    assert blamed(asking(judge, 2, GPU, OTHER, THIRD)) == {OTHER, THIRD}


def test_a_neighbour_whose_own_fault_comes_later_is_to_blame_from_then_on() -> None:
    judge = healthy()
    judge.after(1, xid(119, OTHER, "kmsg"))
    assert blamed(asking(judge, 2, GPU, OTHER, THIRD)) == {OTHER}
    judge.after(1, xid(79, GPU, "kmsg"))
    assert blamed(asking(judge, 2, GPU, OTHER, THIRD)) == {GPU, OTHER}


def test_a_gpu_that_asked_first_is_blamed_no_longer_once_another_ones_fault_is_seen() -> None:
    judge = healthy()
    for pci in (GPU, OTHER, THIRD):
        verdict = judge.after(0.001, action(2, pci))
    assert blamed(verdict) == {GPU} == judge.memory.onsets.keys()
    verdict = judge.after(1, xid(79, THIRD, "kmsg"))
    assert blamed(verdict) == {THIRD} == judge.memory.onsets.keys()


def test_a_neighbour_that_asks_along_makes_no_line_and_no_event_of_its_own() -> None:
    judge = healthy()
    judge.after(1, xid(79, OTHER, "kmsg"))
    for pci in (GPU, OTHER, THIRD):
        verdict = judge.after(0.001, action(2, pci))
    assert ids(verdict) == [f"xid-79@{OTHER}"]
    judge = healthy()
    verdict = judge.after(1, action(0))
    assert [f.finding.message for f in verdict.faults] == [
        "Xid 154: The driver asks for another recovery action, 0: nothing"
    ]


def test_neighbours_are_well_with_the_gpu_that_was_to_blame() -> None:
    judge = healthy()
    judge.after(1, xid(119, OTHER, "kmsg"), *(action(2, pci) for pci in (GPU, OTHER, THIRD)))
    asking(judge, 2, GPU, OTHER, THIRD)
    rebooted = [reading(pci, energy_j=1.0) for pci in (GPU, OTHER, THIRD)]
    judge.after(60, alive(boot_id="boot-2"), alive("kmsg", boot_id="boot-2"), *rebooted)
    for _ in range(140):
        verdict = judge.after(5, alive(boot_id="boot-2"), alive("kmsg", boot_id="boot-2"), *rebooted)
    assert [i for i in ids(verdict) if "154" not in i] == []


def test_one_gpu_alone_that_asks_for_a_reboot_is_to_blame_itself() -> None:
    judge = healthy()
    judge.after(1, xid(94, OTHER, "kmsg"), action(2))
    assert blamed(asking(judge, 2, GPU)) == {GPU}


def test_a_milder_action_after_a_graver_one_lowers_nothing() -> None:
    for words in permutations((action(1), action(2), action(4))):
        judge = healthy()
        for word in words:
            verdict = judge.after(0.001, word)
        assert (verdict.withdraw, verdict.remedy) == (True, Remedy.REBOOT_NODE), words
