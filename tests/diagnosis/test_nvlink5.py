"""Xids 144 to 150 by NVIDIA's rows: each row in the forms of both generations, and lines that no row knows."""

from __future__ import annotations

from collections import Counter

from agent.diagnosis import nvlink5
from agent.diagnosis.nvlink5 import Known
from agent.diagnosis.rules import ROWS
from agent.model.fault import Finding, Severity
from agent.model.observation import Missing, Observation, Value
from agent.model.remedy import Remedy
from tests.observe import Judge, alive, reading, xid

FATAL, NOTICE = (Severity.FATAL, Remedy.RESET_GPU), Severity.NOTICE


def line(known: Known, pattern: str, any_bit: str = "0", *, unit: str = "", **more: int) -> Observation:
    word = int(pattern.replace("-", any_bit), 2)
    fatal = int("Fatal" in known.severity)
    values = {"fatal": fatal, "link": 3, "intrinfo": word, "error_status": known.error_status, **more}
    return xid(known.code, source="kmsg", values={**values, "unit": unit or known.units[0]})


def judged(seen: Observation) -> Finding:
    judge = Judge(expected=("nvml", "kmsg"))
    judge.after(0, alive(), alive("kmsg"), reading())
    judge.after(1, seen)
    (fault,) = judge.after(3).faults
    return fault.finding


def test_there_are_ninety_four_rows_and_each_says_where_to_look() -> None:
    assert len(nvlink5.ROWS) == 94
    assert {known.investigate for known in nvlink5.ROWS} == set(nvlink5.LOOK_AT)
    assert all({len(pattern) for pattern in known.patterns} == {32} for known in nvlink5.ROWS)
    assert Counter(known.code for known in nvlink5.ROWS).keys() == set(range(144, 151))


def test_each_row_is_known_by_both_patterns_any_of_its_units_and_any_free_bits() -> None:
    for known in nvlink5.ROWS:
        for pattern in known.patterns:
            for unit in known.units:
                for any_bit in "01":
                    seen = line(known, pattern, any_bit, unit=unit)
                    row = nvlink5.judged(seen, known.code, ROWS[f"xid-{known.code}"])
                    due = known.due("Fatal" in known.severity)
                    assert row, (known, pattern, unit)
                    assert (row.severity is Severity.FATAL) is (due == "RESET_GPU"), (known, pattern, unit)
                    by_action = due == "XID_154_EVAL"
                    assert ("recovery action decides" in row.meaning) is by_action, (known, pattern, unit)
                    looks = nvlink5.LOOK_AT[known.investigate] in row.meaning
                    assert looks is (known.investigate != "IGNORE" or not by_action), (known, pattern, unit)


def test_no_line_is_of_two_rows_that_say_otherwise() -> None:
    """But for several error bits at once, of which the gravest decides."""
    for known in nvlink5.ROWS:
        for pattern in known.patterns:
            for any_bit in "01":
                word = int(pattern.replace("-", any_bit), 2)
                alike = [k for k in nvlink5.ROWS if k.meant(known.code, known.units[0], word, known.error_status)]
                assert len({(k.immediate, k.starred, k.investigate) for k in alike}) == 1, alike


def test_of_several_error_bits_the_gravest_decides() -> None:
    known = next(k for k in nvlink5.ROWS if k.units == ("SAW_MVB",))
    assert judged(line(known, known.patterns[0], error_status=0x24, fatal=0)).severity is NOTICE
    found = judged(line(known, known.patterns[0], error_status=0x34, fatal=0))
    assert (found.severity, found.remedy) == FATAL


def test_a_line_of_no_row_is_as_grave_as_its_own_word() -> None:
    known = next(k for k in nvlink5.ROWS if k.units == ("TREX",))
    for intrinfo, status in ((0x3FFFFFFF, 1), (int(known.patterns[1].replace("-", "0"), 2), 0x100)):
        strange = {"intrinfo": intrinfo, "error_status": status}
        assert judged(xid(147, source="kmsg", values={"unit": "TREX", "fatal": 0, **strange})).severity is NOTICE
        found = judged(xid(147, source="kmsg", values={"unit": "TREX", "fatal": 1, **strange}))
        assert (found.severity, found.remedy) == FATAL
    assert judged(line(known, known.patterns[1], unit="XYZ", fatal=1)).severity is Severity.FATAL
    assert judged(xid(147, source="kmsg", values={"fatal": 1})).severity is Severity.FATAL


def test_the_message_names_unit_link_and_whom_to_look_at() -> None:
    known = next(k for k in nvlink5.ROWS if k.investigate == "INVESTIGATE_PEER_DEVICE")
    assert judged(line(known, known.patterns[0], injected=1)).message == (
        "Xid 149: unit NETIR_LINK_EVT, NVLink 3, Fatal, injected: look at the peer: the GPU or switch at the link's "
        "other end"
    )


def test_a_first_word_of_a_storm_is_judged_though_milder_ones_follow_it() -> None:
    known = next(k for k in nvlink5.ROWS if k.immediate == "RESET_GPU")
    mild = next(k for k in nvlink5.ROWS if k.code == known.code and k.immediate == "IGNORE")
    judge = Judge(expected=("nvml", "kmsg"))
    judge.after(0, alive(), alive("kmsg"), reading())
    judge.after(1, line(known, known.patterns[0]))
    for _ in range(5):
        verdict = judge.after(0.5, line(mild, mild.patterns[0]), xid(known.code))
    assert verdict.withdraw


def test_a_driver_that_tells_no_recovery_action_is_not_waited_for() -> None:
    known = next(k for k in nvlink5.ROWS if k.immediate == "RESET_GPU")
    for action, at_once in ((Missing.UNSUPPORTED, True), (0, False)):
        judge = Judge(expected=("nvml", "kmsg"))
        judge.after(0, alive(), alive("kmsg"), reading(recovery_action=action))
        assert judge.after(1, line(known, known.patterns[0])).withdraw is at_once
        assert judge.after(3).withdraw


def test_a_source_that_says_nonsense_breaks_no_verdict() -> None:
    trex = next(known for known in nvlink5.ROWS if known.units == ("TREX",))
    too_long = int(trex.patterns[1].replace("-", "1"), 2) << 4
    for intrinfo, status in ((-1, -1), (too_long, 1), (0.5, 1e300), ("x", "y")):
        values: dict[str, Value] = {
            "fatal": 1,
            "unit": "TREX",
            "intrinfo": intrinfo,
            "error_status": status,
            "link": "x",
        }
        assert judged(xid(147, source="kmsg", values=values)).severity is Severity.FATAL
