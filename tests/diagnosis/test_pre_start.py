"""What a new life of the agent makes of a repair that nobody remembers: no second one of the same incident."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest

from agent.config.limits import Limits
from agent.diagnosis.judge import Memory, judge
from agent.diagnosis.resume import resumed
from agent.model.fault import Severity, Verdict
from agent.model.observation import Failure, Missing, Observation, Signal, Value, Words
from agent.model.remedy import Remedy
from agent.remediation.other_controllers import released
from agent.remediation.records import Attempt, Records, Stage
from agent.remediation.stored import dump, restored
from tests.life import Life
from tests.observe import OTHER, Judge, alive, lost, reading, xid
from tests.remediation.test_repair import returned

RESET = 95


def test_a_server_restored_to_before_the_repair_and_an_agent_that_starts_anew_lead_to_no_second_one() -> None:
    """Restored to after each write of the incident, its Job gone with it, when the GPU was reset already."""
    plain = Life(RESET)
    plain.run(200)
    for write in range(plain.writes):
        life, snapshots = Life(RESET), {}
        snapshots[0] = copy.deepcopy(life.cluster._objects)

        def api(
            method: str, path: str, *rest: Any, life: Life = life, kept: dict[int, Any] = snapshots, **more: Any
        ) -> tuple[int, Any]:
            answer = life.cluster(method, path, *rest, **more)
            if method != "GET":
                kept[life.writes + 1] = copy.deepcopy(life.cluster._objects)
            return answer

        life.api = api
        while not life.ended or write not in snapshots:
            life.tick()
        life.api, life.cluster._objects = None, snapshots[write]
        life.cluster._version += 1000
        life._begin()
        life.run(450)
        assert life.ended == ["reset_gpu"], f"restored to after write {write}: {life.waits}"
        asked = [why for why in life.waits if why.startswith("a person must decide about xid-95")]
        # Where not even the fault is known any more, nothing tells whether the reset came before or after it.
        assert returned(life) if write > 1 else asked, f"restored to after write {write}: {life.waits}"


def life_after(*seen: Observation, stored: Verdict | None = None, gap_s: float = 60.0) -> Judge:
    """A new process, whose sources say this at once; ``stored`` is what the Node kept of the last."""
    life = Judge(expected=("nvml", "kmsg"))
    text = dump(stored, 1, 0.0, Records()) if stored else None
    life.now += gap_s
    life.memory = resumed(Memory(), restored(text, life.now), Limits(), {})
    life.after(1, alive(), alive("kmsg"), *seen)
    return life


def before(**values: Any) -> Verdict:
    life = Judge(expected=("nvml", "kmsg"))
    life.after(0, alive(), alive("kmsg"), reading(energy_j=5000.0, persistence_mode=1, **values))
    return life.after(1, xid(RESET, source="kmsg"))


@pytest.mark.parametrize(
    ("values", "proved"),
    [
        ({"energy_j": 900.0, "persistence_mode": 1}, True),
        ({"energy_j": 5100.0, "persistence_mode": 1}, False),  # nobody reset it
        ({"energy_j": 900.0, "persistence_mode": 0}, False),  # it begins anew whenever the last client leaves
        ({"energy_j": 900.0, "persistence_mode": Missing.UNREADABLE}, False),
        ({"energy_j": 900.0, "persistence_mode": 1, "recovery_action": 1}, False),
    ],
)
def test_a_reset_that_nobody_watched_is_proved_by_the_gpus_own_counter(values: dict[str, Any], proved: bool) -> None:
    verdict = life_after(reading(**values), stored=before()).after(0)
    assert next(f for f in verdict.standing if f.finding.rule == "xid-95").proved is proved


def test_a_fault_that_came_again_after_a_reset_is_not_proved_by_that_reset() -> None:
    again = life_after(reading(energy_j=900.0, persistence_mode=1), stored=before()).after(5, xid(RESET, source="kmsg"))
    verdict = life_after(reading(energy_j=950.0, persistence_mode=1), stored=again, gap_s=120.0).after(0)
    assert not verdict.faults[0].proved


def test_a_restart_makes_no_proof_of_a_reset_that_the_fault_may_have_outlived() -> None:
    life = Judge(expected=("nvml", "kmsg"))
    life.after(0, alive(), alive("kmsg"), reading(energy_j=5000.0, persistence_mode=1))
    life.after(1, xid(RESET, source="kmsg"))  # after a reset, or before it
    stands = life.after(4, alive(), reading(energy_j=900.0, persistence_mode=1))
    assert not stands.faults[0].proved
    again = life_after(reading(energy_j=950.0, persistence_mode=1), stored=stands).after(0)
    assert not again.faults[0].proved


@pytest.mark.parametrize("code", [RESET, 64])
def test_what_came_while_nvml_was_closed_is_not_proved_by_a_reset_that_came_before_it(code: int) -> None:
    """As it is for a reset of our own, of which the API server then tells nobody."""
    life = Judge(expected=("nvml", "kmsg"))
    life.after(0, alive(), alive("kmsg"), reading(energy_j=5000.0, persistence_mode=1))
    life.after(1, xid(RESET, source="kmsg"))
    life.after(1, Observation(0, "nvml", Signal.FAILED, value=Failure.KEEP_OFF, raw="the GPU is being reset"))
    stands = life.after(30, xid(code, source="kmsg"))  # the reset was done by then
    again = life_after(reading(energy_j=950.0, persistence_mode=1), stored=stands).after(0)
    assert not next(fault for fault in again.standing if fault.finding.rule == f"xid-{code}").proved


def pre_start(life: Judge) -> bool:
    return life.after(0).faults[0].pre_start


def logs_before_the_start(life: Judge) -> None:
    wall = life.wall + life.now
    old = replace(xid(RESET, source="kmsg", seq=7), arrived=life.now, at=wall - 60)
    life.memory, _ = judge(life.memory, [old], life.now, wall, life.limits, life.expected)


@pytest.mark.parametrize("said", [reading(recovery_action=1), lost(), None])
def test_a_record_from_before_the_start_is_doubted_only_where_the_gpu_asks_for_nothing(
    said: Observation | None,
) -> None:
    life = Judge(expected=("nvml", "kmsg"))
    life.after(0, alive(), alive("kmsg"), reading())
    logs_before_the_start(life)
    assert pre_start(life) is True
    if said is not None:
        life.after(5, alive(), said)
        assert pre_start(life) is False
        life.after(5, alive(), reading())
        assert pre_start(life) is False, "it asked in this life"
    kept = life_after(reading(), stored=life.after(0))
    assert pre_start(kept) is (said is None)
    kept.after(5, xid(RESET, source="kmsg"))
    assert pre_start(kept) is False, "it came again, and we saw it"


def test_a_reset_that_an_earlier_life_reserved_waits_until_its_gpus_were_heard() -> None:
    def records(stage: Stage) -> Records:
        return Records((Attempt(Remedy.RESET_GPU, 1, "job", ("GPU-a",), "boot", stage),))

    assert released({}, records(Stage.RESERVED), frozenset(), True) == ""
    assert released({}, records(Stage.RESERVED), frozenset({"GPU-a"}), True) == "the GPU is being reset"
    assert released({}, records(Stage.RESERVED), None, True) == "the GPU is being reset"
    assert released({}, records(Stage.STARTED), frozenset(), True) == "the GPU is being reset"


def record(signal: Signal, pci: str, raw: str, value: Value = None) -> Observation:
    """As the kernel log's source tells what was there before the agent's first start."""
    return Observation(0, "kmsg", signal, pci, value, raw=raw, boot_id="boot-1", seq=7, past=True)


@pytest.mark.parametrize(
    ("bus", "where"),
    [
        (f"{OTHER}=none", "an NVIDIA GPU is bound to no driver"),
        ("", "an NVIDIA GPU is not in NVML's enumeration"),  # nor on the bus: only the record tells of it
    ],
)
def test_a_gpu_that_was_unusable_before_the_agent_came_is_named_by_address_and_the_kernels_words(
    bus: str, where: str
) -> None:
    old = record(Signal.DRIVER, OTHER, f"NVRM: GPU {OTHER}: RmInitAdapter failed! (0x22:0x56:894)", Words.INIT_FAILED)
    life = Judge(expected=("nvml", "kmsg"))
    life.after(0, alive("kmsg"), old)
    fault = life.each_poll(60, alive("kmsg"), alive(missing=bus), reading()).faults[0]
    assert (fault.finding.id, fault.finding.severity) == (f"gpu-missing@{OTHER}", Severity.DEGRADED)
    assert fault.finding.message == (
        f"{where} at {OTHER}; before the agent's start the kernel said: "
        f"“GPU {OTHER}: RmInitAdapter failed! (0x22:0x56:894)”"
    )
    assert {word.source for word in fault.witnesses} == {"kmsg", "nvml"}


def test_records_from_before_the_agent_withdraw_nothing_whatever_is_missing_beside_them() -> None:
    """In each order, with each thing that a bus can say of the GPU."""
    records = [
        record(Signal.LOST, OTHER, "GPU has fallen off the bus."),
        record(Signal.DRIVER, OTHER, "RmInitAdapter failed!", Words.INIT_FAILED),
        record(Signal.DRIVER, "", "uvm encountered global fatal error 0x60", Words.UVM_FATAL),
        replace(record(Signal.SXID, "0000:05:00.0", "SXid 20034, Fatal", 20034), values={"fatal": 1}),
        record(Signal.XID, OTHER, "Xid 79", 79),
    ]
    for driver in ("none", "absent", "nvidia", "vfio-pci", "nouveau"):
        for first in range(len(records)):
            life = Judge(expected=("nvml", "kmsg"))
            life.after(0, alive("kmsg"), *records[first:], *records[:first])
            verdict = life.each_poll(120, alive("kmsg"), alive(missing=f"{OTHER}={driver}"), reading())
            theirs = driver in ("vfio-pci", "nouveau")
            assert (not verdict.withdraw, bool(verdict.faults)) == (True, not theirs), driver
