"""What proves that a GPU was reset, and all that looks like a reset and is none."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from agent.config.limits import Limits
from agent.diagnosis.judge import Memory, Orders, judge
from agent.diagnosis.resume import resumed
from agent.model.fault import Fault, Reset
from agent.model.observation import Missing, Observation, Signal, Words
from agent.remediation.records import Records
from agent.remediation.stored import dump, load, restored
from tests.observe import GPU, Judge, alive, lost, reading, xid

Values = dict[str, Any]
OLD: Values = {"energy_j": 5e8, "ecc_uncorrected_volatile": 2, "ecc_corrected_volatile": 40, "pcie_replays": 7}
CLEAN: Values = {**OLD, "ecc_uncorrected_volatile": 0, "ecc_corrected_volatile": 0, "pcie_replays": 0}
NEW: Values = {**CLEAN, "energy_j": 300.0}
YOUNG: Values = {**CLEAN, "energy_j": 900.0}  # its driver was loaded a moment ago
R535: Values = {"recovery_action": Missing.UNSUPPORTED, "energy_j": Missing.UNSUPPORTED}
ABSURD, OVERFLOWN = 2.0**64 / 1000, 2**32 - 1
LOADED = Observation(0, "kmsg", Signal.DRIVER, value=Words.LOADED, raw="NVRM: loading NVIDIA UNIX x86_64 Kernel Module")


def broken(code: int = 95, **values: Any) -> Judge:
    """A GPU that was read twice before its fatal Xid and once after it."""
    life = Judge(expected=("nvml", "kmsg"))
    polls(life, values, values)
    life.after(1, xid(code, source="kmsg"))
    polls(life, values)
    return life


def polls(life: Judge, *readings: Values) -> None:
    for values in readings:
        life.after(5, alive(), alive("kmsg"), reading(**values))


def fault(life: Judge) -> Fault:
    return next(f for f in life.after(1).faults if f.finding.rule.startswith("xid-"))


def next_life(life: Judge, *readings: Values) -> Judge:
    """Another process of the agent, a minute later, by what the Node stores."""
    other = Judge(expected=("nvml", "kmsg"))
    other.now = life.now + 60
    other.memory = resumed(Memory(), restored(dump(life.after(0), 1, 0.0, Records()), other.now), Limits(), {})
    polls(other, *readings)
    return other


NO_RESET: dict[str, tuple[Values, tuple[Values, ...], str]] = {
    "nvidia-smi -p 0": (
        OLD,
        ({**OLD, "ecc_uncorrected_volatile": 0, "ecc_corrected_volatile": 0},),
        "counters ecc_uncorrected_volatile, ecc_corrected_volatile",
    ),
    "a replay counter begins anew": (OLD, ({**OLD, "pcie_replays": 0},), "counter pcie_replays"),
    "a replay counter is absurd once": (
        {**OLD, "pcie_replays": 0},
        ({**OLD, "pcie_replays": OVERFLOWN}, {**OLD, "pcie_replays": 0}),
        "counter pcie_replays",
    ),
    "a replay counter was absurd at the fault": (
        {**OLD, "pcie_replays": OVERFLOWN},
        ({**OLD, "pcie_replays": 0},),
        "counter pcie_replays",
    ),
    "the energy is absurd once": (CLEAN, ({**CLEAN, "energy_j": ABSURD}, CLEAN), "counter energy_j"),
    "a young GPU's energy is absurd once": (YOUNG, ({**YOUNG, "energy_j": ABSURD}, YOUNG), "counter energy_j"),
    "the energy was absurd at the fault": ({**CLEAN, "energy_j": ABSURD}, (CLEAN,), "counter energy_j"),
    "the energy is 0 once": (CLEAN, ({**CLEAN, "energy_j": 0.0}, CLEAN), ""),
    "the energy is little once": (CLEAN, ({**CLEAN, "energy_j": 1.0}, CLEAN), ""),
    "the energy alone": (OLD, ({**OLD, "energy_j": 300.0},), "counter energy_j"),
    "the energy alone, when another counter had grown": (
        CLEAN,
        ({**CLEAN, "pcie_replays": 7}, {**NEW, "pcie_replays": 7}),
        "counter energy_j",
    ),
    "more energy than any GPU can draw": (CLEAN, ({**CLEAN, "energy_j": 4e8},), "counter energy_j"),
    "all but one counter": (
        OLD,
        ({**NEW, "pcie_replays": 7},),
        "counters energy_j, ecc_uncorrected_volatile, ecc_corrected_volatile",
    ),
    "one after the other": (
        OLD,
        ({**OLD, "ecc_uncorrected_volatile": 0, "ecc_corrected_volatile": 0}, {**NEW, "pcie_replays": 7}, NEW),
        "counters energy_j, ecc_uncorrected_volatile, ecc_corrected_volatile, pcie_replays",
    ),
    "persistence mode is off": (
        {**OLD, "persistence_mode": 0},
        ({**NEW, "persistence_mode": 0},),
        "counters energy_j, ecc_uncorrected_volatile, ecc_corrected_volatile, pcie_replays",
    ),
    "persistence mode was off for a moment": (CLEAN, ({**NEW, "persistence_mode": 0}, NEW), "counter energy_j"),
    "an old driver or GPU": (
        {**OLD, **R535},
        ({**NEW, **R535},),
        "counters ecc_uncorrected_volatile, ecc_corrected_volatile, pcie_replays",
    ),
    "it is still asked for": ({**OLD, "recovery_action": 1}, ({**NEW, "recovery_action": 1},), ""),
}


@pytest.mark.parametrize("code", [95, 119])
@pytest.mark.parametrize("what", NO_RESET)
def test_what_is_no_reset_proves_no_cure_and_says_so_in_words_that_stay(what: str, code: int) -> None:
    before, after, fallen = NO_RESET[what]
    life = broken(code, **before)
    polls(life, *after, after[-1])
    told = fault(life).doubts
    for _ in range(150):
        polls(life, after[-1])
        assert (fault(life).proved, fault(life).doubts) == (False, told)
    assert life.after(0).withdraw
    assert [doubt for doubt in told if doubt.startswith("its counter")] == (
        [
            f"its {fallen} began anew, which alone proves no reset since the fault: a driver reload or a reboot would, "
            "or dismiss it"
        ]
        if fallen
        else []
    )
    again = next_life(life, after[-1], after[-1], after[-1])
    assert (fault(again).proved, fault(again).doubts) == (False, told), "nor in the agent's next life"


def test_our_own_reset_proves_nothing_before_its_gpu_was_read_after_it() -> None:
    life = broken()
    last = life.now  # a reset of ours is over since; the agent learns it a second after the last reading
    resets = {f"GPU-{GPU}": Reset("job", over=last, known=last + 1)}

    def stands_proved(*seen: Observation) -> bool:
        life.now += 5
        stamped = [replace(o, arrived=life.now, at=life.wall + life.now) for o in seen]
        orders = Orders(resets=resets)
        life.memory, verdict = judge(life.memory, stamped, life.now, life.now, life.limits, life.expected, orders)
        return verdict.faults[0].proved

    assert not stands_proved(alive("kmsg"))
    assert stands_proved(alive(), alive("kmsg"), reading())


@pytest.mark.parametrize("before", [OLD, CLEAN, {**OLD, "pcie_replays": Missing.UNSUPPORTED}])
def test_all_counters_begun_anew_at_once_with_persistence_mode_on_prove_a_reset(before: Values) -> None:
    life = broken(**before)
    polls(life, NEW)
    assert not fault(life).proved, "one reading may be absurd"
    assert fault(life).doubts == broken(**before).after(0).faults[0].doubts, "nothing is doubted for one poll"
    polls(life, {**NEW, "energy_j": 800.0})
    assert fault(life).proved


CLEARED: Values = {**OLD, "pcie_replays": 0}


def test_what_fell_before_the_fault_came_again_or_was_cured_is_told_no_more() -> None:
    life = broken(**OLD)
    polls(life, CLEARED, CLEARED)
    assert fault(life).fell == ("pcie_replays",)
    stored = dump(life.after(0), 1, 0.0, Records())
    life.after(1, xid(95, source="kmsg"))
    assert fault(life).fell == ()
    other = broken(**CLEARED)
    other.memory = resumed(other.memory, restored(stored, other.now), Limits(), {})
    assert fault(other).fell == ()
    polls(life, {**CLEARED, "ecc_corrected_volatile": 0}, NEW, NEW)
    assert (fault(life).fell, fault(life).proved) == ((), True)


RELOADED = (
    ((LOADED,), True),
    ((), False),
    ((replace(LOADED, past=True),), False),
    ((replace(LOADED, source="dcgm"),), False),  # whoever else says so
    ((LOADED, xid(95, source="kmsg")), False),  # it came again, or before
    ((replace(LOADED, value="unloaded"),), False),  # a word of a newer agent's sources
)


@pytest.mark.parametrize(("said", "proves"), RELOADED)
def test_a_driver_that_the_kernel_loaded_after_the_fault_proves_its_cure(
    said: tuple[Observation, ...], proves: bool
) -> None:
    life = broken(**{**OLD, **R535})
    for one in said:
        life.after(1, one)
    assert not fault(life).proved, "the GPU was not read since"
    polls(life, {**OLD, **R535})
    assert fault(life).proved is proves
    assert {f.finding.rule for f in life.after(0).faults} == {"xid-95"}, "to be loaded is no fault"


@pytest.mark.parametrize("clock_jumps_s", [0.0, -3600.0])
def test_a_driver_that_was_loaded_before_the_fault_proves_nothing(clock_jumps_s: float) -> None:
    life = Judge(expected=("nvml", "kmsg"))
    polls(life, OLD, OLD)
    life.after(1, LOADED)
    life.wall += clock_jumps_s
    life.after(1, xid(95, source="kmsg"))
    polls(life, *[OLD] * 150)
    assert not fault(life).proved


@pytest.mark.parametrize("asks", [{"recovery_action": 1}, None])
def test_a_loaded_driver_cures_no_gpu_that_is_lost_or_asks_for_more(asks: Values | None) -> None:
    life = broken(119, **OLD)
    life.after(1, LOADED)
    life.after(5, alive(), alive("kmsg"), lost() if asks is None else reading(**OLD, **asks))
    assert not fault(life).proved


def test_a_loaded_driver_cures_nothing_that_needs_a_reboot() -> None:
    life = broken(79, **OLD)
    life.after(1, LOADED)
    polls(life, OLD, CLEARED, CLEARED)
    assert not fault(life).proved
    assert not any("began anew" in doubt for doubt in fault(life).doubts), "no counter speaks of a reboot"


@pytest.mark.parametrize(("late_s", "proves"), [(30.0, True), (-30.0, False)])
def test_what_the_next_life_reads_of_a_loaded_driver_counts_by_when_the_kernel_said_it(
    late_s: float, proves: bool
) -> None:
    life = broken(**OLD)
    told_at = fault(life).finding.evidence.at
    again = next_life(life, OLD)
    again.now += 1
    line = replace(LOADED, arrived=again.now, at=told_at + late_s)
    again.memory, _ = judge(again.memory, [line], again.now, again.wall + again.now, Limits(), again.expected)
    polls(again, OLD)
    assert fault(again).proved is proves


@pytest.mark.parametrize(
    ("before", "now", "proves"),
    [
        (OLD, NEW, True),
        (CLEAN, NEW, True),
        (OLD, {**OLD, "energy_j": 300.0}, False),
        (OLD, {**NEW, "pcie_replays": 7}, False),
        (OLD, {**NEW, "energy_j": 4e8}, False),
        (CLEAN, {**CLEAN, "energy_j": 0.0}, False),
        (OLD, {**NEW, "persistence_mode": 0}, False),
        ({**OLD, "persistence_mode": 0}, NEW, False),
        ({**OLD, **R535}, {**NEW, **R535}, False),
    ],
)
def test_across_lives_of_the_agent_all_counters_prove_a_reset_and_no_single_one(
    before: Values, now: Values, proves: bool
) -> None:
    again = next_life(broken(**before), now)
    assert fault(again).proved is proves
    polls(again, now, now)
    assert fault(again).proved is proves


def test_counters_that_fell_one_after_the_other_in_the_next_life_prove_nothing() -> None:
    again = next_life(broken(**OLD), {**OLD, "energy_j": 300.0}, NEW, NEW)
    assert not fault(again).proved


def test_an_absurd_energy_at_the_fault_proves_nothing_to_the_next_life() -> None:
    life = Judge(expected=("nvml", "kmsg"))
    polls(life, YOUNG, YOUNG, {**YOUNG, "energy_j": ABSURD})
    life.after(1, xid(95, source="kmsg"))
    again = next_life(life, YOUNG, YOUNG)
    assert not fault(again).proved


def test_what_came_again_before_the_next_life_read_its_gpu_may_have_come_after_the_reset() -> None:
    again = next_life(broken(**OLD))
    again.after(1, alive(), alive("kmsg"), xid(95, source="kmsg"))
    polls(again, NEW, NEW, NEW)
    assert not fault(again).proved


def test_a_fault_that_this_life_saw_before_it_read_what_was_stored_is_not_cured_by_an_earlier_reset() -> None:
    stored = dump(broken(**OLD).after(0), 1, 0.0, Records())
    life = broken(**NEW)
    life.memory = resumed(life.memory, restored(stored, life.now), Limits(), {})
    polls(life, NEW, NEW)
    assert not fault(life).proved


def test_what_an_older_agent_stored_is_read_and_proves_nothing() -> None:
    data = json.loads(dump(broken(**OLD).after(0), 1, 0.0, Records()))
    for one in data["faults"]:
        assert one["energy_j"] == OLD["energy_j"], "where an older agent looks for it"
        del one["counters"]
    text = json.dumps(data)
    assert [f.counters for f in load(text, 0.0).faults] == [{}]
    life = Judge(expected=("nvml", "kmsg"))
    life.memory = resumed(Memory(), restored(text, life.now), Limits(), {})
    polls(life, NEW, NEW, NEW)
    assert not fault(life).proved


def test_the_counters_of_a_fault_are_read_as_they_were_stored() -> None:
    life = broken(**OLD)
    polls(life, {**OLD, "pcie_replays": 0})
    verdict = life.after(0)
    text = dump(verdict, 1, 0.0, Records())
    (read,) = load(text, 0.0).faults
    assert (read.counters, read.fell) == (verdict.standing[0].counters, ("pcie_replays",))
    assert dump(replace(verdict, standing=(read,)), 1, 0.0, Records()) == text


def test_counters_of_the_cards_address_alone_are_looked_at() -> None:
    life = broken(**OLD)
    other = {**NEW, "uuid": "GPU-other"}
    for _ in range(3):
        life.after(5, alive(), alive("kmsg"), reading(**OLD), reading("0000:43:00.0", **other))
    assert (fault(life).finding.pci, fault(life).proved) == (GPU, False)
