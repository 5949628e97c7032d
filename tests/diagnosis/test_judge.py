"""What the judge promises about faults over time."""

from __future__ import annotations

import pytest

from agent.config.limits import Limits
from agent.diagnosis.judge import Memory
from agent.diagnosis.resume import resumed
from agent.model.fault import Severity, Status
from agent.model.observation import Failure, Missing, Observation, Signal, Value
from agent.model.remedy import Remedy
from agent.remediation.records import Records
from agent.remediation.stored import dump, load, restored
from tests.observe import GPU, OTHER, Judge, alive, ids, lost, reading, xid

HOT = {"margin_c": -4, "slowdown_tlimit_c": -2, "shutdown_tlimit_c": -9, "temperature_c": 95}
COOL = {"margin_c": 40, "slowdown_tlimit_c": -2, "shutdown_tlimit_c": -9, "temperature_c": 45}


def test_a_fatal_xid_withdraws_at_once_and_silence_does_not_cure_it() -> None:
    judge = Judge()
    judge.after(0, alive(), reading())
    verdict = judge.after(1, xid(79))
    assert (verdict.status, verdict.remedy, verdict.withdraw) == (Status.UNHEALTHY, Remedy.REBOOT_NODE, True)
    verdict = judge.each_poll(3 * 3600, alive(), reading())
    assert ids(verdict) == [f"xid-79@{GPU}"]


@pytest.mark.parametrize("code", [13, 31, 43, 45])
def test_application_xids_in_any_number_never_withdraw(code: int) -> None:
    judge = Judge()
    for _ in range(600):
        verdict = judge.after(0.5, alive(), reading(), xid(code))
        assert not verdict.withdraw
        assert verdict.status is Status.HEALTHY
    assert [f.finding.severity for f in verdict.faults] == [Severity.NOTICE]


def test_every_listed_code_has_an_entry_and_an_unlisted_one_is_a_notice() -> None:
    judge = Judge()
    verdict = judge.after(0, alive(), reading(), *(xid(code, source="nvml") for code in range(1, 1000)))
    assert len(verdict.faults) == 999 - 3, "171 and 172 only say more about a 48, and a 74 waits for its line"
    assert next(f for f in verdict.faults if f.finding.rule == "xid-999").finding.severity is Severity.NOTICE


def test_two_context_switch_timeouts_an_hour_degrade() -> None:
    judge = Judge()
    assert judge.after(0, alive(), reading(), xid(109)).status is Status.HEALTHY
    verdict = judge.after(40, alive(), reading(), xid(109))
    assert (verdict.status, verdict.withdraw) == (Status.DEGRADED, False)


def test_one_error_told_by_two_witnesses_is_one_fault_and_counts_once() -> None:
    judge = Judge(expected=("nvml", "kmsg"))
    judge.after(0, alive(), alive("kmsg"), reading())
    judge.after(1, xid(95, source="kmsg"))
    verdict = judge.after(0.2, xid(95, source="nvml"))
    assert ids(verdict) == [f"xid-95@{GPU}"]
    assert [w.source for w in verdict.faults[0].witnesses] == ["kmsg", "nvml"]
    assert judge.memory.history.tallies[GPU, 95].count == 1


def test_brief_heat_is_ignored() -> None:
    judge = Judge()
    judge.each_poll(55, alive(), reading(**HOT))
    assert judge.each_poll(100, alive(), reading(**COOL)).faults == ()


def test_lasting_heat_degrades_and_clears_only_below_the_hysteresis() -> None:
    judge = Judge()
    verdict = judge.each_poll(60, alive(), reading(**HOT))
    assert (verdict.status, verdict.withdraw, ids(verdict)) == (Status.DEGRADED, False, [f"temperature@{GPU}"])
    barely = {**COOL, "margin_c": 0}  # 2 °C better than the limit: inside the 3 °C of hysteresis
    assert judge.each_poll(1200, alive(), reading(**barely)).status is Status.DEGRADED
    assert judge.each_poll(590, alive(), reading(**COOL)).status is Status.DEGRADED
    assert judge.each_poll(15, alive(), reading(**COOL)).status is Status.HEALTHY


def test_heat_up_to_ampere_is_judged_by_absolute_limits() -> None:
    judge = Judge()
    old = {"temperature_c": 96, "temperature_slowdown_c": 95, "temperature_shutdown_c": 101}
    assert ids(judge.each_poll(60, alive(), reading(**old, margin_c=Missing.UNSUPPORTED))) == [f"temperature@{GPU}"]


def test_margin_offsets_are_never_taken_for_degrees() -> None:
    verdict = Judge().each_poll(600, alive(), reading(temperature_c=60, slowdown_tlimit_c=-2, shutdown_tlimit_c=-5))
    assert verdict.status is Status.HEALTHY


def test_heat_close_to_shutdown_withdraws() -> None:
    judge = Judge()
    assert judge.each_poll(5, alive(), reading(**{**HOT, "margin_c": -8})).withdraw


def test_blind_agent_never_clears_a_fault() -> None:
    judge = Judge()
    judge.each_poll(60, alive(), reading(**HOT))
    verdict = judge.after(7200)
    assert verdict.blind
    assert f"temperature@{GPU}" in ids(verdict)


def test_a_silent_source_alone_never_withdraws() -> None:
    judge = Judge()
    judge.after(0, alive(), reading())
    for _ in range(100):
        verdict = judge.after(600)
        assert not verdict.withdraw
    assert (verdict.status, ids(verdict)) == (Status.DEGRADED, ["nvml-silent@node"])


def test_a_lost_gpu_withdraws_at_once_for_a_reboot() -> None:
    judge = Judge()
    judge.after(0, alive(), reading(), reading(OTHER))
    verdict = judge.after(5, alive(), lost(), reading(OTHER))
    assert (verdict.withdraw, verdict.remedy, ids(verdict)) == (True, Remedy.REBOOT_NODE, [f"gpu-lost@{GPU}"])


def test_a_reading_that_is_judged_twice_is_no_second_reading() -> None:
    judge = Judge()
    judge.after(0, alive(), reading())
    judge.after(5, alive(), reading(recovery_action=1))
    for _ in range(4):
        assert not judge.after(1).withdraw
    assert judge.after(1, alive(), reading(recovery_action=1)).withdraw


def test_an_action_that_is_read_as_none_overrules_no_xid_of_that_round() -> None:
    judge = Judge()
    judge.each_poll(60, alive(), reading(recovery_action=1))
    verdict = judge.after(5, alive(), reading(), xid(79))
    assert {f.finding.remedy for f in verdict.standing if f.finding.rule == "xid-79"} == {Remedy.REBOOT_NODE}


def test_an_action_that_the_kernel_log_told_stands_until_nvml_has_read_again() -> None:
    judge = Judge(expected=("nvml", "kmsg"))
    judge.after(0, alive(), alive("kmsg"), reading())
    assert judge.after(1, xid(154, source="kmsg", values={"recovery_action": 2})).withdraw
    for _ in range(20):
        assert judge.after(1).withdraw
    assert judge.after(0, alive(), reading()).withdraw
    assert not judge.after(3).withdraw


@pytest.mark.parametrize("asked_s", [1, 30])
def test_a_state_clears_by_the_time_since_it_was_seen_to_end_however_seldom_it_is_judged(asked_s: int) -> None:
    judge = Judge(Limits(expected_gpus=2, missing_confirm_s=0))
    for _ in range(2):
        judge.after(1, alive(gpu_count=1), reading())
    for _ in range(30 // asked_s):
        judge.after(asked_s)
    assert ids(judge.after(0, alive(gpu_count=2), reading())) == ["gpu-count@node"]
    assert ids(judge.after(2.9)) == ["gpu-count@node"]
    assert ids(judge.after(0.1)) == []


def test_a_reset_fault_ends_with_new_counters_no_recovery_action_and_a_soak() -> None:
    judge = Judge(Limits(soak_s=60))
    judge.each_poll(10, alive(), reading(energy_j=500.0))
    judge.after(1, xid(95))
    judge.each_poll(300, alive(), reading(energy_j=600.0, recovery_action=1))
    assert judge.after(5, alive(), reading(energy_j=1.0, recovery_action=1)).withdraw, "the driver still asks"
    assert judge.each_poll(55, alive(), reading(energy_j=2.0)).withdraw, "it soaks first"
    assert judge.each_poll(30, alive(), reading(energy_j=3.0)).status is Status.HEALTHY


def test_what_may_have_come_after_a_reset_is_not_cured_by_it() -> None:
    judge = Judge(Limits(soak_s=0), expected=("nvml", "kmsg"))
    judge.each_poll(10, alive(), alive("kmsg"), reading(energy_j=500.0))
    judge.after(2, xid(95, source="kmsg"))
    judge.after(3, alive(), alive("kmsg"), reading(energy_j=1.0))
    assert judge.each_poll(600, alive(), alive("kmsg"), reading(energy_j=1.0)).withdraw, "the reset may have come first"
    assert judge.each_poll(30, alive(), alive("kmsg"), reading(energy_j=0.5)).status is Status.HEALTHY, "a second one"


def test_a_second_witness_of_the_error_that_a_reset_cured_makes_it_no_later() -> None:
    judge = Judge(Limits(soak_s=0), expected=("nvml", "kmsg"))
    judge.each_poll(10, alive(), alive("kmsg"), reading(energy_j=500.0))
    judge.after(1, xid(95), reading(energy_j=501.0))
    judge.after(0.2, xid(95, source="kmsg"))
    assert judge.each_poll(30, alive(), alive("kmsg"), reading(energy_j=1.0)).status is Status.HEALTHY


def test_a_gpu_that_answered_only_that_it_needs_a_reset_is_cured_by_somebody_elses() -> None:
    judge = Judge(Limits(soak_s=0))
    judge.each_poll(10, alive(), reading(energy_j=500.0))
    required = Observation(0, "nvml", Signal.RESET_REQUIRED, GPU, raw="NVML error 16")
    assert judge.each_poll(30, alive(), required).withdraw
    assert judge.each_poll(30, alive(), reading(energy_j=1.0)).status is Status.HEALTHY


def test_a_reset_does_not_cure_what_needs_a_reboot() -> None:
    judge = Judge(Limits(soak_s=0))
    judge.after(0, alive(), reading(energy_j=500.0))
    judge.after(1, xid(79))
    assert judge.each_poll(600, alive(), reading(energy_j=1.0)).withdraw


def test_a_reboot_cures_a_lost_gpu_only_if_it_answers_again() -> None:
    judge = Judge(Limits(soak_s=10))
    judge.after(0, alive(), reading())
    judge.after(5, alive(), lost(), xid(79))
    assert judge.each_poll(100, alive(boot_id="boot-2"), lost()).withdraw
    judge = Judge(Limits(soak_s=10))
    judge.after(0, alive(), reading())
    judge.after(5, alive(), lost(), xid(79))
    assert judge.each_poll(30, alive(boot_id="boot-2"), reading()).status is Status.HEALTHY


def test_a_fault_seen_just_before_a_reboot_is_not_dated_into_the_next_boot() -> None:
    judge = Judge(Limits(soak_s=0), expected=("nvml", "kmsg"))
    judge.after(0, alive(), alive("kmsg"), reading())
    judge.after(5, lost(), alive())
    judge.after(5, alive("kmsg", boot_id="boot-2"), lost(), alive())  # the kernel log was read last, NVML first
    assert judge.each_poll(10, alive("kmsg", boot_id="boot-2"), reading(), alive(boot_id="boot-2")).faults == ()


def test_another_card_in_the_slot_ends_its_predecessors_faults() -> None:
    judge = Judge()
    judge.each_poll(10, alive(), reading(remapped_rows_failure=1))
    assert judge.each_poll(9000, alive(boot_id="boot-2"), reading(remapped_rows_failure=0)).withdraw
    assert judge.after(5, alive(), reading(uuid="GPU-new")).status is Status.HEALTHY


def test_a_fault_that_was_told_before_its_gpu_was_read_learns_which_card_it_is_of() -> None:
    judge = Judge()
    judge.after(0, alive())
    assert judge.after(1, xid(95)).faults[0].uuid == ""
    assert judge.after(5, alive(), reading()).faults[0].uuid == f"GPU-{GPU}"


def test_after_a_reboot_nobody_knows_whether_the_card_is_the_same() -> None:
    judge = Judge()
    judge.after(0, alive())
    judge.after(1, xid(95))
    assert judge.after(60, alive(boot_id="boot-2"), reading()).faults[0].uuid == ""


def test_records_older_than_the_first_start_withdraw_only_with_present_evidence() -> None:
    judge = Judge(expected=("nvml", "kmsg"))
    verdict = judge.each_poll(60, alive(), alive("kmsg"), reading(), xid(79, past=True))
    assert (verdict.status, verdict.faults, judge.memory.history.tallies) == (Status.HEALTHY, (), {})
    assert ids(judge.after(5, alive(), reading(recovery_action=2))) == [f"xid-79@{GPU}"]


@pytest.mark.parametrize("jump_s", [-31_536_000, 31_536_000])
def test_a_clock_jump_neither_creates_nor_clears_a_fault(jump_s: float) -> None:
    judge = Judge()
    judge.each_poll(60, alive(), reading(**HOT), reading(OTHER))
    judge.wall += jump_s
    assert ids(judge.each_poll(100, alive(), reading(**COOL), reading(OTHER))) == [f"temperature@{GPU}"]


def test_uncorrectable_errors_withdraw_where_the_chip_does_not_contain_them() -> None:
    for name, architecture, withdraw in (("NVIDIA L40S", 8, True), ("NVIDIA H100", 9, False), ("NVIDIA A10", 7, True)):
        judge = Judge()
        card: dict[str, Value] = {"name": name, "architecture": architecture}
        judge.after(0, alive(), reading(**card, ecc_uncorrected_volatile=3))
        verdict = judge.after(5, alive(), reading(**card, ecc_uncorrected_volatile=4))
        assert (ids(verdict), verdict.withdraw) == ([f"ecc-uncorrected@{GPU}"], withdraw), name


def test_errors_counted_before_our_first_reading_are_no_news() -> None:
    assert Judge().each_poll(60, alive(), reading(ecc_uncorrected_volatile=12)).faults == ()


def test_an_unsupported_value_is_neither_good_nor_bad() -> None:
    judge = Judge()
    judge.each_poll(10, alive(), reading(remapped_rows_failure=1))
    assert judge.each_poll(600, alive(), reading(remapped_rows_failure=Missing.UNSUPPORTED)).withdraw


def test_a_restart_forgets_no_standing_fault_and_its_cure_counts() -> None:
    judge = Judge(Limits(soak_s=0))
    judge.after(0, alive(), reading())
    verdict = judge.after(1, xid(79))
    stored = load(dump(verdict, 7, verdict.at, Records()), 50.0)
    assert (stored.kernel_seq, stored.boot_id) == (7, "boot-1")
    again = Judge(Limits(soak_s=0))
    again.memory = Memory(again.memory.history, {f.finding.id: f for f in stored.faults})
    assert again.each_poll(60, alive(), reading()).withdraw
    assert again.each_poll(10, alive(boot_id="boot-2"), reading()).status is Status.HEALTHY


def test_a_storm_that_two_witnesses_count_is_counted_once() -> None:
    judge = Judge(expected=("nvml", "kmsg"))
    judge.after(0, alive(), alive("kmsg"), reading())
    judge.after(1, xid(13, source="kmsg"), xid(13))
    judge.after(1, xid(13, source="kmsg", values={"repeats": 499}))
    judge.after(2, xid(13, values={"repeats": 499}), alive())
    assert judge.memory.history.tallies[GPU, 13].count == 500
    assert judge.memory.history.within(GPU, 13, 60) == 64, "bounded, and enough for any count that a rule asks for"


def test_a_node_is_healthy_only_when_every_gpu_was_read_once() -> None:
    judge = Judge()
    assert judge.after(0, reading()).status is Status.UNKNOWN, "the first poll isn't over"
    assert judge.after(1, reading(OTHER), alive()).status is Status.HEALTHY


@pytest.mark.parametrize("hangs", [False, True], ids=["crash", "hang"])
def test_readings_before_the_gpu_at_which_every_poll_ends_are_no_poll(hangs: bool) -> None:
    """A source that is started anew every minute, reads GPUs 0 to 3, and dies or hangs at GPU 4."""
    judge, gpus = Judge(), [f"0000:{bus}:00.0" for bus in range(10, 18)]
    hung = [Observation(0, "nvml", Signal.FAILED, value=Failure.HUNG, raw="reading name of GPU 4")] if hangs else []
    assert judge.after(0, *map(reading, gpus), alive()).status is Status.HEALTHY
    verdicts = [judge.after(60, *map(reading, gpus[:4]), *hung) for _ in range(10)]
    assert [str(verdict.status) for verdict in verdicts[1:]] == ["unknown"] * 2 + ["degraded"] * 7
    assert all(verdict.blind for verdict in verdicts[1:])
    assert ids(verdicts[-1]) == ["driver-hung@node" if hangs else "nvml-silent@node"]
    assert judge.after(60, *map(reading, gpus), alive()).status is Status.HEALTHY


def test_a_reading_ends_no_failure_before_its_poll_is_finished() -> None:
    judge = Judge()
    judge.after(0, reading(), alive())
    judge.after(1, Observation(0, "nvml", Signal.FAILED, value=Failure.UNREADABLE, raw="NVML can't be used"))
    assert judge.after(1, reading()).status is Status.UNKNOWN
    assert judge.after(1, alive()).status is Status.HEALTHY


def test_events_between_two_heartbeats_renew_nothing() -> None:
    judge = Judge(expected=("nvml", "kmsg"))
    judge.after(0, reading(), alive(), alive("kmsg"))
    for _ in range(10):
        verdict = judge.after(20, reading(), alive(), xid(13, source="kmsg"))
    assert verdict.blind_lines == ("kmsg: no poll finished for over 60 s",)
    assert "kmsg-silent@node" in ids(verdict)
    for _ in range(10):
        verdict = judge.after(20, reading(), alive("kmsg"), xid(13))
    assert verdict.blind_lines == ("nvml: no poll finished for over 60 s",)
    assert "nvml-silent@node" in ids(verdict)


def test_a_gpu_that_is_not_read_is_named_in_words_that_stay_the_same() -> None:
    judge = Judge()
    judge.after(0, reading(), reading(OTHER), alive())
    judge.each_poll(90, reading(OTHER), alive())
    said = {judge.after(5, reading(OTHER), alive()).blind_lines for _ in range(10)}
    assert said == {(f"GPU {GPU}: not read for over 60 s",)}
    verdicts = [judge.after(5, reading(OTHER), alive()) for _ in range(20)]
    assert {fault.finding.message for fault in verdicts[-1].faults} == {
        "NVML's polls finish without this GPU for over 180 s"
    }
    assert len({dump(verdict, 1, 0, Records()) for verdict in verdicts[-8:]}) == 1, "nothing is stored anew"


def test_a_gpu_that_was_never_read_in_this_life_is_missed_as_the_node_knows_it() -> None:
    judge = Judge()
    stored = dump(judge.after(0, reading(), reading(OTHER), alive()), 1, 0, Records())
    judge.memory = resumed(Memory(), restored(stored, judge.now), judge.limits, {})
    assert judge.each_poll(55, reading(OTHER), alive()).status is Status.HEALTHY
    assert judge.each_poll(15, reading(OTHER), alive()).status is Status.UNKNOWN
    assert ids(judge.each_poll(180, reading(OTHER), alive())) == [f"gpu-silent@{GPU}"]


@pytest.mark.parametrize(
    ("why", "fault"),
    [
        ("Unknown Error (NVML error 999)", True),
        ("its power cables are not connected: a person must look (NVML error 8)", True),
        ("no permission on its device (NVML error 4)", False),
    ],
)
def test_a_gpu_that_answers_nothing_from_the_first_start_is_named_with_the_words_of_nvml(why: str, fault: bool) -> None:
    """What the container may not open is its configuration: it is unknown, and no fault of the GPU."""
    judge, silent = Judge(), alive(silent=f"{GPU}={why}")
    judge.each_poll(70, reading(OTHER), silent)
    verdict = judge.each_poll(5, reading(OTHER), silent)
    assert verdict.blind_lines == (f"GPU {GPU}: not read for over 60 s; {why}",)
    verdict = judge.each_poll(180, reading(OTHER), silent)
    assert [f.finding.message.rpartition("; ")[2] for f in verdict.faults] == [why] * fault
    assert verdict.status is (Status.DEGRADED if fault else Status.UNKNOWN)


def test_without_nvml_no_gpu_is_silent() -> None:
    judge = Judge(expected=("kmsg",))
    stored = dump(Judge().after(0, reading(), alive()), 1, 0, Records())
    judge.memory = resumed(Memory(), restored(stored, judge.now), judge.limits, {})
    verdict = judge.each_poll(600, alive("kmsg"))
    assert (verdict.status, verdict.blind_lines) == (Status.HEALTHY, ())
