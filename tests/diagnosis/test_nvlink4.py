"""Xid 74 by its registers: each bit by itself, several at once, and what it is told by."""

from __future__ import annotations

import csv
from pathlib import Path

from agent.config.limits import Limits
from agent.diagnosis import nvlink4
from agent.diagnosis.advice import clears
from agent.model.fault import Severity
from agent.model.observation import Observation
from agent.model.remedy import Remedy
from tests.life import Life
from tests.observe import GPU, Judge, alive, ids, reading, xid

NOTICE, FATAL = Severity.NOTICE, Severity.FATAL


def error(*bits: tuple[int, int], link: int = 14) -> Observation:
    """The kernel's line with these bits: register from 1, bit."""
    words = [0] * 7
    for register, bit in bits:
        words[register - 1] |= 1 << bit
    return xid(74, source="kmsg", values={"link": link, "registers": " ".join(map(hex, words))})


def healthy() -> Judge:
    judge = Judge(expected=("nvml", "kmsg"))
    judge.after(0, alive(), alive("kmsg"), reading())
    return judge


def judged(*seen: Observation) -> tuple[Severity, Remedy]:
    judge = healthy()
    for one in seen:
        (fault,) = judge.after(1, one).faults
    return fault.finding.severity, fault.finding.remedy


def test_there_are_fourteen_classes_over_forty_two_bits_and_none_twice() -> None:
    bits = [(one.register, bit) for one in nvlink4.CLASSES for bit in one.bits]
    assert (len(nvlink4.CLASSES), len(bits), len(set(bits))) == (14, 42, 42)


def test_each_bit_alone_is_as_grave_as_its_class_and_counts_on_its_link() -> None:
    for one in nvlink4.CLASSES:
        for bit in one.bits:
            wanted = (one.severity, one.remedy)
            for times in range(1, one.count):
                found = judged(*(error((one.register, bit)) for _ in range(times)))
                assert found == (NOTICE, one.remedy), (one, times)
            assert judged(*(error((one.register, bit)) for _ in range(one.count))) == wanted, one
            elsewhere = [error((one.register, bit), link=link) for link in range(one.count)]
            assert one.count == 1 or judged(*elsewhere) == (NOTICE, one.remedy), one


def test_of_several_bits_the_gravest_decides_whatever_their_registers() -> None:
    for one in nvlink4.CLASSES:
        bit = (one.register, min(one.bits))
        grave, _ = judged(error(bit, (1, 0), (5, 20)))
        assert grave is judged(error(bit))[0]
        assert judged(error(bit, (1, 16)))[0] is FATAL
        assert judged(error(bit), error((1, 0)), error((5, 20)))[0] is grave


def test_a_bit_that_nobody_lists_is_reported_as_gravely_as_no_registers() -> None:
    for register in (1, 3, 4, 5):
        listed = {bit for one in nvlink4.CLASSES if one.register == register for bit in one.bits}
        for bit in set(range(32)) - listed:
            assert judged(error((register, bit), (1, 0))) == (FATAL, Remedy.CONTACT_SUPPORT)
    assert judged(error()) == judged(xid(74, source="kmsg")) == (FATAL, Remedy.CONTACT_SUPPORT)


def test_registers_that_are_not_judged_say_nothing() -> None:
    for register in (2, 6, 7):
        assert judged(error((1, 0), (register, 9)))[0] is NOTICE


def test_the_message_names_link_register_bits_and_what_to_check() -> None:
    judge = healthy()
    (fault,) = judge.after(1, error((1, 16), (1, 8), link=9)).faults
    assert fault.finding.message == (
        "Xid 74: NVLink 9: register 1, bits 8, 16: may be mechanical: check and seat the bridge or board anew at both "
        "ends; run field diagnostics if it stays"
    )


def test_repeats_are_forgotten_after_a_day() -> None:
    judge = healthy()
    judge.after(1, error((3, 16)))
    (fault,) = judge.after(86_500, alive(), alive("kmsg"), reading(), error((3, 16))).faults
    assert fault.finding.severity is NOTICE


def test_an_event_of_nvmls_takes_the_word_of_the_line_beside_it_in_either_order() -> None:
    for bits, wanted in (((1, 0), NOTICE), ((1, 16), FATAL)):
        for events in ((error(bits), xid(74)), (xid(74), error(bits))):
            judge = healthy()
            for one in events:
                judge.after(0.1, one)
            (fault,) = judge.after(5, alive(), alive("kmsg"), reading()).faults
            assert fault.finding.severity is wanted
            assert {w.source for w in fault.witnesses} == {"nvml", "kmsg"}


def test_an_event_without_a_line_is_as_grave_as_ever_after_two_seconds() -> None:
    judge = healthy()
    assert not judge.after(1, xid(74)).withdraw
    assert not judge.after(1.9).withdraw
    assert judge.after(0.2).withdraw


def test_a_storm_of_events_does_not_put_the_end_of_the_wait_off() -> None:
    judge = healthy()
    for _ in range(20):
        verdict = judge.after(0.5, xid(74))
    assert verdict.withdraw


def test_a_line_without_registers_names_its_link_and_waits_for_nothing() -> None:
    judge = healthy()
    verdict = judge.after(1, xid(74, source="kmsg", values={"link": 3}))
    assert verdict.withdraw
    assert "NVLink 3" in verdict.faults[0].finding.message


def test_what_only_follows_another_error_joins_it() -> None:
    judge = healthy()
    judge.after(1, xid(79, source="kmsg"))
    verdict = judge.after(0.1, error((1, 1)))
    assert ids(verdict) == [f"xid-79@{GPU}"]
    assert [f.finding.id for f in verdict.faults[0].joined] == [f"xid-74@{GPU}"]


def test_the_table_is_as_it_is_read() -> None:
    text = (Path(nvlink4.__file__).with_suffix(".csv")).read_text(encoding="utf-8")
    assert all(row["meaning"] and row["register"] in "1345" for row in csv.DictReader(text.splitlines()))


def test_a_person_who_resets_the_gpu_returns_the_node_and_the_agent_resets_none() -> None:
    life = Life(74)
    life.run(200)
    assert life.tainted()
    assert life.waits == (f"a person must decide about xid-74@{GPU}",)
    life.new[GPU] = life.now  # as a reset leaves it
    life.run(100)
    assert (life.tainted(), life.repairs) == (False, [])


def test_it_is_said_that_a_reset_ends_it() -> None:
    (fault,) = healthy().after(1, error((1, 16))).faults
    assert clears(fault.finding, Limits()).startswith("a GPU reset (")


def test_a_source_that_says_nonsense_is_as_one_that_tells_no_registers() -> None:
    zeros = "0x0 0x0 0x0 0x0 0x0 0x0 0x0"
    for words in ("zz", "0x1 0x2", 7, "1 1 1 1 1 1 1", f"{zeros} 0x0", zeros.upper()):
        assert judged(xid(74, source="kmsg", values={"registers": words, "link": "x"})) == (
            FATAL,
            Remedy.CONTACT_SUPPORT,
        )
    assert judged(xid(74, source="kmsg", values={"registers": zeros.replace("0x0", "0x1", 1)}))[0] is NOTICE
