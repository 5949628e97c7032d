"""A storm of one error: bounded lines, nothing of another kind lost, every repeat counted."""

from __future__ import annotations

from dataclasses import replace

from agent.model.observation import Observation, Signal, Words
from agent.sources.process.storm import Storm


def xid(code: int, pci: str = "0000:1b:00.0", past: bool = False, pid: int = 7) -> Observation:
    return Observation(0.0, "kmsg", Signal.XID, pci, value=code, values={"pid": pid}, past=past)


def test_a_storm_is_a_line_a_second_that_counts_it_and_hides_no_other_error() -> None:
    storm, said = Storm(), []
    for number in range(60_000):  # 20,000 a second for three seconds
        now = number / 20_000
        said += storm.gathered(now)
        for one in (xid(13), *([xid(79)] if number == 12_345 else [])):
            if storm.passes(one, now):
                said.append(one)
    said += storm.gathered(3.0, all_of_them=True)
    assert len(said) < 40
    assert sum(int(str(one.values.get("repeats", 1))) for one in said if one.value == 13) == 60_000
    assert sum(one.value == 79 for one in said) == 1


def test_a_storm_of_processes_is_no_storm_of_lines() -> None:
    storm, said = Storm(), []
    for number in range(20_000):
        now = number / 20_000
        said += storm.gathered(now)
        if storm.passes(one := xid(13, pid=number), now):
            said.append(one)
    said += storm.gathered(1.0, all_of_them=True)
    assert len(said) < 200
    assert sum(int(str(one.values.get("repeats", 1))) for one in said) == 20_000


def test_errors_that_are_far_apart_are_each_told_at_once() -> None:
    storm = Storm()
    assert all(storm.passes(xid(13), now) for now in (0.0, 1.0, 2.5, 60.0))
    assert storm.gathered(100.0) == []


def test_memory_stays_bounded_however_many_kinds_there_are() -> None:
    storm = Storm()
    for code in range(100_000):
        storm.passes(xid(code), 0.0)
    assert len(storm._said) <= 1024
    storm.gathered(5.0)
    assert not storm._said


def test_old_records_are_told_one_by_one() -> None:
    storm = Storm()
    assert all(storm.passes(xid(13, past=True), 0.0) for _ in range(10))


def test_a_storm_of_the_drivers_other_words_is_a_line_a_second_too() -> None:
    storm, said = Storm(), []
    lost = Observation(0.0, "kmsg", Signal.DRIVER, value=Words.GPU_LOST)
    for number in range(40_000):
        now = number / 20_000
        said += storm.gathered(now)
        said += [one for one in (lost, replace(lost, value=Words.UVM_FATAL)) if storm.passes(one, now)]
    assert len(said) < 10
    assert {one.value for one in said} == {Words.GPU_LOST, Words.UVM_FATAL}


def test_errors_of_one_code_that_differ_in_what_they_decide_are_each_told_at_once() -> None:
    storm, words = Storm(), ({"recovery_action": 4}, {"recovery_action": 1}, {"link": 3}, {"link": 4}, {"fatal": 1})
    for values in words:
        told = Observation(0, "kmsg", Signal.XID, "0000:1b:00.0", 154, values=dict(values))
        assert storm.passes(told, 1.0)
        assert not storm.passes(told, 1.0)
