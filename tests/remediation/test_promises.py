"""Promises that hold for every sequence of events, tried on many."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from hypothesis import example, given, settings
from hypothesis import strategies as st

from agent.diagnosis.rules.xid import CATALOG
from agent.model.fault import Severity, Verdict
from agent.model.observation import Observation, Signal, Value
from tests.observe import GPU, OTHER, Judge, alive, lost, reading, xid

EXAMPLES = settings(max_examples=40, deadline=None)
SOURCES = ("kmsg", "nvml")
gpus = st.sampled_from((GPU, OTHER))
sources = st.sampled_from(SOURCES)
waits = st.floats(0.0, 900.0)
bad_readings = st.fixed_dictionaries(
    {},
    optional={
        "recovery_action": st.integers(0, 8),
        "remapped_rows_pending": st.integers(0, 1),
        "remapped_rows_failure": st.integers(0, 1),
        "ecc_uncorrected_volatile": st.integers(0, 3),
        "margin_c": st.integers(-12, 5),
        "pcie_width": st.sampled_from((8, 16)),
    },
)


@st.composite
def anything(draw: st.DrawFn) -> Observation:
    """One observation of any kind."""
    kind = draw(st.sampled_from(("xid", "reading", "lost", "reset", "switch")))
    pci = draw(gpus)
    if kind == "xid":
        return xid(draw(st.sampled_from(sorted(CATALOG))), pci, draw(sources))
    if kind == "lost":
        return lost(pci, draw(sources))
    if kind == "reset":
        return Observation(0, "nvml", Signal.RESET_REQUIRED, pci, raw="NVML error 16")
    if kind == "switch":
        fatal = draw(st.integers(0, 1))
        return Observation(0, "kmsg", Signal.SXID, pci, draw(st.integers(10001, 24007)), {"fatal": fatal}, "SXid")
    values = {"slowdown_tlimit_c": -2, "shutdown_tlimit_c": -9, "pcie_max_width": 16, **draw(bad_readings)}
    return reading(pci, **values)


def healthy() -> list[Observation]:
    return [alive(), alive("kmsg"), reading(), reading(OTHER)]


def told(verdict: Verdict) -> tuple[object, ...]:
    faults = [(f.finding.id, f.finding.severity, f.finding.remedy) for f in verdict.faults]
    return (verdict.status, verdict.remedy, verdict.blind, sorted(faults))


def held(verdict: Verdict) -> tuple[object, ...]:
    """What is told, and what stands behind it joined to another fault."""
    return (told(verdict), [(f.finding.id, f.proved) for f in verdict.standing])


@EXAMPLES
@given(st.lists(st.tuples(waits, anything()), max_size=12), st.lists(waits, min_size=1, max_size=8))
def test_a_blind_agent_never_clears_a_fault(events: list[tuple[float, Observation]], silence: list[float]) -> None:
    judge = Judge(expected=SOURCES)
    judge.after(0, *healthy())
    for wait, seen in events:
        judge.after(wait, alive(), alive("kmsg"), seen)
    before = {f.finding.id: f.finding.severity for f in judge.after(0).standing}
    judge.now += judge.limits.silent_s  # what was heard up to here is still heard
    for wait in silence:
        after = {f.finding.id: f.finding.severity for f in judge.after(wait + 1).standing}
        assert before.items() <= after.items()


@EXAMPLES
@given(st.data())
def test_order_and_repetition_of_witnesses_do_not_change_the_verdict(data: st.DataObject) -> None:
    incident = [
        xid(79),
        xid(79, source="kmsg"),
        lost(),
        lost(source="kmsg"),
        xid(154, source="kmsg", values={"recovery_action": 2}),
    ]
    told_last = set()
    for order in (incident, data.draw(st.permutations(incident))):
        judge = Judge(expected=SOURCES)
        judge.after(0, *healthy())
        for seen in order:
            for _ in range(data.draw(st.integers(1, 3))):
                judge.after(0.5, seen)
        told_last.add(str(told(judge.after(1, alive(), alive("kmsg"), lost(), reading(OTHER)))))
    assert len(told_last) == 1


@EXAMPLES
@given(
    st.lists(
        st.tuples(st.floats(0, 40_000), st.sampled_from((13, 31, 43, 45, 68, 8)), gpus, sources, st.integers(1, 9)),
        max_size=60,
    )
)
def test_no_sequence_of_application_errors_withdraws(events: list[tuple[float, int, str, str, int]]) -> None:
    judge = Judge(expected=SOURCES)
    judge.after(0, *healthy())
    for wait, code, pci, source, pid in events:
        verdict = judge.after(wait, *healthy(), xid(code, pci, source, values={"pid": pid}))
        assert not verdict.withdraw
        assert all(f.finding.severity <= Severity.DEGRADED for f in verdict.faults)


@EXAMPLES
@given(st.lists(st.tuples(waits, anything(), st.integers(-(10**8), 10**8)), max_size=12))
def test_a_clock_that_jumps_neither_creates_nor_clears_a_fault(events: list[tuple[float, Observation, int]]) -> None:
    steady, jumpy = Judge(expected=SOURCES), Judge(expected=SOURCES)
    for judge in (steady, jumpy):
        judge.after(0, *healthy())
    for wait, seen, jump in events:
        jumpy.wall += jump
        jumpy.wall = max(jumpy.wall, 10.0**9)
        verdicts = [judge.after(wait, alive(), alive("kmsg"), seen) for judge in (steady, jumpy)]
        fatal = [
            {f.finding.id: f.finding.severity for f in v.faults if f.finding.rule != "gpu-relapsing"} for v in verdicts
        ]
        assert fatal[0] == fatal[1]


@EXAMPLES
@given(st.lists(anything(), max_size=20), st.data())
def test_a_batch_is_judged_as_its_parts_would_be(batch: list[Observation], data: st.DataObject) -> None:
    """Whether the pipe gave its lines in one read or in several."""
    whole, parts = Judge(expected=SOURCES), Judge(expected=SOURCES)
    for judge in (whole, parts):
        judge.after(0, *healthy())
    whole.after(0.5, *(replace(o) for o in batch))
    cut = data.draw(st.integers(0, len(batch)))
    parts.after(0.5, *batch[:cut])
    parts.after(0, *batch[cut:])
    ids = [{f.finding.id for f in judge.after(0.1, alive()).standing} for judge in (whole, parts)]
    assert ids[0] == ids[1]


@settings(EXAMPLES, max_examples=25)  # each judges a thousand times
@given(st.lists(st.tuples(waits, anything()), max_size=8), st.floats(1.0, 20.0))
@example([(wait, reading(OTHER, recovery_action=n)) for wait, n in ((0.0, 1), (3.0, 1), (3.0, 0))], 1.0)
@example(  # the action ends joined to the Xid, which alone is told; then nothing is read for minutes
    [
        *((wait, reading(recovery_action=4)) for wait in (0.0, 4.0)),
        (1.0, xid(94)),
        *((wait, reading(recovery_action=n)) for wait, n in ((1.0, 0), (300.0, 1))),
    ],
    1.0,
)
@example(  # a GPU that comes and goes stays silent for five minutes after its word; no poll comes meanwhile
    [
        *((wait, reading(pci)) for wait, pci in ((436.0, OTHER), (379.0, GPU), (157.0, OTHER))),
        (296.0, Observation(0, "nvml", Signal.RESET_REQUIRED, OTHER, raw="NVML error 16")),
        (488.0, Observation(0, "nvml", Signal.RESET_REQUIRED, GPU, raw="NVML error 16")),
        (625.0, reading(OTHER)),
    ],
    13.0,
)
@example(  # the same of a GPU that is lost, beside Xids
    [
        (867.0, xid(45, source="kmsg")),
        (258.0, reading(OTHER, recovery_action=2)),
        *((wait, xid(code, OTHER, "kmsg")) for wait, code in ((257.0, 64), (504.0, 13))),
        (237.0, lost(OTHER)),
        (577.0, lost(source="kmsg")),
    ],
    18.75,
)
def test_judging_more_often_concludes_nothing_else(events: list[tuple[float, Observation]], tick_s: float) -> None:
    """What a recording leaves out, rounds in which nothing came and nothing changed, changes nothing."""
    seldom, often = Judge(expected=SOURCES), Judge(expected=SOURCES)
    for judge in (seldom, often):
        judge.after(0, *healthy())
    last = held(often.after(0))
    for wait, seen in events:
        for _ in range(int(wait / tick_s)):
            judged = held(often.after(tick_s))
            if judged != last:  # a recording has this round, for it changed something
                assert held(seldom.after(often.now - seldom.now)) == judged
                last = judged
        seldom.now = often.now = often.now + 0.1
        verdicts = [judge.after(0, alive(), alive("kmsg"), seen) for judge in (seldom, often)]
        assert held(verdicts[0]) == held(verdicts[1])
        last = held(verdicts[1])


def _told(code: int, **values: Value) -> Observation:
    return xid(code, source="kmsg", values=values)


# A GPU's words that come within moments, as an incident has them.
_WORDS = (
    _told(79),
    _told(119),
    _told(48),
    _told(94),
    _told(63),
    _told(13, place="GPC 1, TPC 3"),
    _told(74, link=3, registers="0x1 0x0 0x0 0x0 0x0 0x0 0x0"),
    _told(74, link=3, registers="0x200000 0x0 0x0 0x0 0x0 0x0 0x0"),
    _told(74, link=3, registers="0x0 0x0 0x0 0x40000 0x0 0x0 0x0"),
    _told(74, link=5, registers="0x0 0x0 0x10000 0x0 0x0 0x0 0x0"),
    _told(145, fatal=0, unit="RLW_REMAP", link=2, intrinfo=4, error_status=4),
    _told(149, fatal=1, unit="NETIR_LINK_EVT", link=2, intrinfo=0x2000011, error_status=0),
    _told(149, fatal=1, unit="NETIR_LINK_EVT", link=2, intrinfo=0x2800011, error_status=0),
    _told(154, recovery_action=1),
    _told(154, recovery_action=2),
    lost(source="kmsg"),
)
_DRAINS = _told(154, recovery_action=4)


def _gathered(*words: Observation, gap_s: float = 0.01) -> tuple[int, int]:
    """The severity and the rank of the remedy that stand when the words had their time."""
    judge = Judge(expected=SOURCES)
    judge.after(0, *healthy())
    for word in words:
        judge.after(gap_s, word)
    for _ in range(3):
        verdict = judge.after(1)
    severity = verdict.faults[0].finding.severity if verdict.faults else 0
    return severity, verdict.remedy.rank if severity else 0


@EXAMPLES
@given(st.lists(st.sampled_from(_WORDS), min_size=1, max_size=6, unique_by=id), st.randoms(), st.booleans())
def test_the_gravest_of_several_words_wins_whatever_their_order(
    words: list[Observation], chance: Random, d: bool
) -> None:
    gravest = max(_gathered(word) for word in words)
    shuffled = list(words)
    chance.shuffle(shuffled)
    assert _gathered(*words) == _gathered(*shuffled, gap_s=0.3) == gravest
    if d:  # an action that only drains makes a catalogue's word milder, and in any order to the same
        together = [*words, _DRAINS]
        chance.shuffle(together)
        assert _gathered(*together) == _gathered(*words, _DRAINS)
