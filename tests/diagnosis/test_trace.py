"""The driver's trace as a witness: asked only once it was right in this boot, and nothing waits for it in vain."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

from agent.model.fault import Severity, Status
from agent.model.observation import Observation
from tests.observe import GPU, OTHER, Judge, alive, ids, reading, xid

LOG, TRACE, NVML = "kmsg", "trace", "nvml"


def line(code: int, pci: str = GPU, seq: int = 7, **extra: str) -> Observation:
    return xid(code, pci, LOG, seq=seq, boot_id="boot-1", **extra)


def polls() -> tuple[Observation, ...]:
    return alive(), alive(LOG), alive(TRACE), reading(), reading(OTHER)


def trusting() -> Judge:
    """One whose trace told an Xid 31 that the kernel log told too."""
    judge = Judge(expected=(NVML, LOG, TRACE))
    judge.after(0, *polls())
    judge.after(1, xid(31, source=TRACE), line(31, seq=1))
    return judge


def test_a_fatal_line_withdraws_in_the_very_round_while_the_trace_is_off_or_was_never_right() -> None:
    for expected in ((NVML, LOG), (NVML, LOG, TRACE)):
        judge = Judge(expected=expected)
        judge.after(0, *(o for o in polls() if o.source in expected))
        assert judge.after(0, line(79)).withdraw
        assert judge.memory.history.waiting == ()


def test_whoever_confirms_a_line_it_withdraws_in_that_round_whatever_comes_first() -> None:
    for other in (xid(79, source=TRACE), xid(79)):
        for order in permutations((line(79), other)):
            judge = trusting()
            assert judge.after(30, *polls(), *order).withdraw
            judge = trusting()
            judge.after(30, *polls(), order[0])
            verdict = judge.after(1, order[1])
            assert verdict.withdraw
            assert {word.source for word in verdict.faults[0].witnesses} == {LOG, other.source}


def test_a_line_that_neither_trace_nor_nvml_tells_is_a_notice_until_one_of_them_does() -> None:
    judge = trusting()
    assert judge.after(30, *polls(), line(79)).status is Status.HEALTHY
    assert not judge.after(1, *polls()).withdraw
    verdict = judge.after(2, *polls())
    (doubted, _) = verdict.faults
    assert (doubted.finding.id, doubted.finding.severity) == (f"kernel-log-doubted@{GPU}", Severity.NOTICE)
    assert "“Xid (PCI:0000:1b:00.0): 79”" in doubted.finding.message
    assert judge.after(60, *polls(), xid(79, source=TRACE)).withdraw, "late, and true"


def test_a_life_that_ends_while_a_line_waits_forgets_nothing() -> None:
    judge = trusting()
    verdict = judge.after(30, *polls(), line(79, seq=41), replace(line(31, OTHER, seq=42)))
    assert verdict.kernel_seq == 40
    assert judge.after(3, *polls()).kernel_seq == 42


def test_a_drills_line_waits_for_no_trace() -> None:
    judge = trusting()
    judge.after(30, *polls(), line(79, drill="nonce"))
    assert judge.memory.history.waiting == ()


def test_without_the_trace_the_node_is_not_unknown() -> None:
    judge = trusting()
    rest = [o for o in polls() if o.source != TRACE]
    assert judge.each_poll(100, *rest).status is Status.HEALTHY
    verdict = judge.each_poll(700, *rest)
    assert (verdict.status, ids(verdict)) == (Status.HEALTHY, ["trace-silent@node"])
