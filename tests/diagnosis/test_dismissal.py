"""A person's word ends what it names, at once and for as long as it stands, and hides nothing that is new."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.config.limits import Limits
from agent.diagnosis.judge import Memory
from agent.diagnosis.resume import resumed
from agent.model.fault import Status, Verdict
from agent.remediation.records import Records
from agent.remediation.stored import dump, load
from agent.status.state import fault
from tests.observe import GPU, OTHER, Judge, alive, ids, lost, reading, xid

SOURCES = ("nvml", "kmsg")
BROKEN = (alive(), alive("kmsg"), lost(), reading(OTHER))


def words(verdict: Verdict) -> frozenset[str]:
    """The ids in the sentence that is to be pasted for the worst fault."""
    told = str(fault(verdict.faults[0], Limits())["clears"])
    return frozenset(told.partition("gpu-health-agent/dismiss=")[2].partition(" ")[0].split(","))


def test_an_xid_from_before_the_first_start_is_dismissed_for_as_long_as_the_word_stands() -> None:
    judge = Judge(expected=SOURCES)
    asks = reading(recovery_action=2)
    judge.after(0, alive(), alive("kmsg"), replace(xid(79, source="kmsg"), past=True))
    assert f"xid-79@{GPU}" in ids(judge.each_poll(20, alive(), alive("kmsg"), asks))
    judge.dismissed = frozenset({f"xid-79@{GPU}", f"recovery-action@{GPU}"})
    for _ in range(20):
        assert ids(judge.after(5, alive(), alive("kmsg"), asks)) == []
    verdict = judge.after(1, alive(), alive("kmsg"), asks, xid(79, source="kmsg"))
    assert f"xid-79@{GPU}" in ids(verdict), "it came again"


def test_the_sentence_to_paste_names_an_incident_with_all_its_symptoms_and_ends_them_at_once() -> None:
    judge = Judge(expected=SOURCES)
    judge.after(0, alive(), alive("kmsg"), reading(), reading(OTHER))
    judge.after(1, *BROKEN, xid(79, source="kmsg"))
    verdict = judge.after(5, *BROKEN)
    assert words(verdict) == {f"xid-79@{GPU}", f"gpu-lost@{GPU}"} == {f.finding.id for f in verdict.standing}
    judge.dismissed = words(verdict)
    for _ in range(20):
        verdict = judge.after(5, *BROKEN)
        assert (ids(verdict), verdict.status) == ([], Status.HEALTHY)
    judge.dismissed = frozenset()
    assert ids(judge.after(5, *BROKEN)) == [f"gpu-lost@{GPU}"]


@pytest.mark.parametrize("obeyed", [False, True])
def test_a_word_from_while_no_agent_ran_covers_what_the_kernel_logged_by_then_and_an_older_word_does_not(
    obeyed: bool,
) -> None:
    word = frozenset({f"xid-79@{GPU}"})
    last = Judge(expected=SOURCES)
    last.dismissed = word if obeyed else frozenset()
    stored = dump(last.after(0, alive(), alive("kmsg"), reading()), 7, 0.0, Records())
    life = Judge(expected=SOURCES)
    life.now, life.dismissed = last.now + 60, word
    life.memory = resumed(Memory(), load(stored, life.now), Limits(), {})
    life.after(0, alive(), alive("kmsg"), reading())
    record = xid(79, source="kmsg", boot_id="boot-1", seq=8)
    verdict = life.hears(replace(record, at=life.wall + life.now - 30, arrived=life.now))
    assert ids(verdict) == ([f"xid-79@{GPU}"] if obeyed else [])
    assert ids(life.after(1, xid(79, source="kmsg"))) == [f"xid-79@{GPU}"], "it came again"


def test_a_gpu_that_is_not_read_stays_unknown_though_its_fault_is_dismissed_and_that_is_said() -> None:
    judge = Judge()
    judge.after(0, alive(), reading(), reading(OTHER))
    judge.each_poll(400, alive(), reading())
    assert ids(judge.after(5, alive(), reading())) == [f"gpu-silent@{OTHER}"]
    judge.dismissed = frozenset({f"gpu-silent@{OTHER}"})
    verdict = judge.each_poll(60, alive(), reading())
    assert (ids(verdict), verdict.status) == ([], Status.UNKNOWN)
    assert (
        f"a person dismissed gpu-silent@{OTHER}, and it stays unknown until it is seen again" in verdict.blind_lines[0]
    )
    judge.after(5, alive(), reading(), reading(OTHER))
    assert judge.after(5, alive(), reading(), reading(OTHER)).status is Status.HEALTHY


def test_a_silent_source_whose_fault_is_dismissed_stays_unknown_and_that_is_said() -> None:
    judge = Judge()
    judge.after(0, alive(), reading())
    assert ids(judge.after(400)) == ["nvml-silent@node"]
    judge.dismissed = frozenset({"nvml-silent@node"})
    for _ in range(5):
        verdict = judge.after(5)
        assert (ids(verdict), verdict.status) == ([], Status.UNKNOWN)
        assert "a person dismissed nvml-silent@node" in verdict.blind_lines[0]


CONFIRMED = Limits.model_validate({"overrides": [{"rule": "xid-63", "confirm_s": 30}], "xid_count_window_s": 100})


@pytest.mark.parametrize("tick_s", [0.5, 5.0, 1000.0])
@pytest.mark.parametrize(
    ("at", "stands"), [((0,), False), ((0, 10), False), ((0, 40), True), ((0, 10, 31), True), ((0, 150), False)]
)
def test_an_event_that_is_to_be_confirmed_is_by_another_one_so_much_later_however_often_it_is_judged(
    tick_s: float, at: tuple[float, ...], stands: bool
) -> None:
    judge = Judge(CONFIRMED)
    judge.after(0, alive(), reading())
    began = judge.now
    for one in at:
        while judge.now + tick_s < began + one:
            judge.after(tick_s)
        judge.after(began + one - judge.now, xid(63))
    assert (f"xid-63@{GPU}" in ids(judge.after(0.1))) is stands


def test_an_override_that_confirms_an_event_later_makes_no_state_of_it() -> None:
    judge = Judge(CONFIRMED)
    judge.dismissed = frozenset({f"xid-63@{GPU}"})
    judge.after(0, alive(), reading())
    judge.after(1, xid(63))
    assert ids(judge.after(40, xid(63))) == [f"xid-63@{GPU}"]
