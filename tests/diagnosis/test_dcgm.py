"""DCGM as the second witness: whom it joins, when it disagrees, and what it can't do alone."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from agent.commands.replay import replay
from agent.config.settings import Config
from agent.diagnosis.judge import Memory, Orders, judge
from agent.diagnosis.rules.dcgm import CODES, EXPLAINED_BY, ROWS
from agent.diagnosis.rules.disagreement import disagreements
from agent.diagnosis.rules.silence import blind
from agent.model.fault import Finding, Severity, Status
from agent.model.observation import Failure, Missing, Observation, Signal, Value
from agent.model.remedy import Remedy
from agent.recording.recording import Recorder, Recording, Round
from tests.observe import GPU, OTHER, Judge, alive, ids, lost, reading, xid


def health(code: int, pci: str = GPU, check: float = 1.0, **values: Value) -> Observation:
    said = f"DCGM code {code}"
    return Observation(0, "dcgm", Signal.HEALTH, pci, code, {"check": check, "severity": 2, **values}, raw=said)


def failed(failure: Failure, why: str) -> Observation:
    return Observation(0, "dcgm", Signal.FAILED, value=failure, raw=why)


def second(**values: Value) -> tuple[Observation, Observation]:
    return reading(GPU, "dcgm", **values), alive("dcgm", "")


def judge_of_three() -> Judge:
    return Judge(expected=("nvml", "kmsg", "dcgm"))


def test_one_incident_shows_all_of_its_witnesses_and_counts_once() -> None:
    one = judge_of_three()
    one.after(0, alive(), alive("kmsg"), reading(), *second())
    one.after(1, xid(79, source="kmsg"), xid(79), lost())
    verdict = one.after(30, xid(79, source="dcgm", raw="DCGM field 230: Xid 79"), health(120, xid=79))
    assert ids(verdict) == [f"xid-79@{GPU}"]
    assert {witness.source for witness in verdict.faults[0].witnesses} == {"kmsg", "nvml", "dcgm"}
    assert one.memory.history.tallies[GPU, 79].count == 1, "DCGM tells it late, and tells the same"


def test_an_xid_that_only_dcgm_tells_is_judged_by_our_catalogue() -> None:
    one = judge_of_three()
    one.after(0, alive(), reading(), *second())
    verdict = one.after(1, xid(31, source="dcgm"))
    assert [(f.finding.rule, f.finding.severity) for f in verdict.faults] == [("xid-31", Severity.NOTICE)]


def sxid(code: int, source: str = "kmsg", fatal: int = 1) -> Observation:
    raw = "DCGM field 856" if source == "dcgm" else "nvidia-nvswitch0: SXid (PCI:0000:05:00.0)"
    return Observation(0, source, Signal.SXID, "0000:05:00.0", code, {"fatal": fatal}, raw=f"{raw}: {code}")


def test_a_switchs_error_by_dcgm_joins_the_kernels_line_and_is_judged_by_the_same_catalogue() -> None:
    one = judge_of_three()
    one.after(0, alive(), alive("kmsg"), reading(), *second())
    one.after(1, sxid(11001))
    verdict = one.after(10, sxid(11001, "dcgm"))
    assert (ids(verdict), verdict.status) == (["sxid-11001@node/0000:05:00.0"], Status.UNHEALTHY)
    assert {witness.source for witness in verdict.faults[0].witnesses} == {"kmsg", "dcgm"}
    alone = judge_of_three()
    alone.after(0, alive(), alive("kmsg"), reading(), *second())
    assert ids(alone.after(1, sxid(11001, "dcgm"))) == ["sxid-11001@node/0000:05:00.0"], "without the kernel log too"
    assert [f.finding.severity for f in alone.after(1, sxid(99999, "dcgm", fatal=0)).faults][1:] == [Severity.NOTICE]


def test_a_link_fault_that_dcgm_tells_late_after_a_reset_withdraws_nothing() -> None:
    one = judge_of_three()
    one.after(0, alive(), alive("kmsg"), reading(energy_j=900), *second())
    one.after(5, alive(), reading(energy_j=1))
    assert [f.finding.severity for f in one.after(1, sxid(20034)).faults] == [Severity.NOTICE]
    one.each_poll(70, alive(), alive("kmsg"), reading(energy_j=2))
    verdict = one.after(5, sxid(20034, "dcgm"))
    assert [f.finding.severity for f in verdict.faults] == [Severity.NOTICE]


def test_a_switchs_error_by_the_engine_of_another_node_is_believed_in_nothing() -> None:
    one = judge_of_three()
    one.each_poll(60, alive(), alive("kmsg"), reading(uuid="GPU-ours"), *second(uuid="GPU-theirs"))
    assert "sxid-11001@node/0000:05:00.0" not in ids(one.after(1, sxid(11001, "dcgm")))


def test_dcgms_readings_never_stand_in_for_nvmls() -> None:
    one = judge_of_three()
    one.after(0, alive(), reading(ecc_uncorrected_volatile=0), *second(ecc_uncorrected_volatile=0))
    verdict = one.after(5, *second(ecc_uncorrected_volatile=7))
    assert ids(verdict) == []
    assert one.memory.history.number(GPU, "ecc_uncorrected_volatile") == 0


def test_a_lasting_disagreement_is_a_notice_and_a_passing_one_only_a_metric() -> None:
    one = judge_of_three()
    same, other = second(pcie_replays=4), second(pcie_replays=9)
    nvml = (alive(), alive("kmsg"), reading(pcie_replays=4))
    one.each_poll(20, *nvml, *same)
    assert list(disagreements(one.memory.history, 60)) == []
    verdict = one.each_poll(200, *nvml, *other)
    assert list(disagreements(one.memory.history, 60)) == [(GPU, "pcie_replays", 4.0, 9.0)]
    assert ids(verdict) == []
    verdict = one.each_poll(200, *nvml, *other)
    assert (ids(verdict), verdict.status) == ([f"dcgm-disagrees@{GPU}"], Status.HEALTHY)
    assert verdict.faults[0].finding.evidence.raw == "pcie_replays: 9 by DCGM, 4 by NVML"
    assert ids(one.each_poll(700, *nvml, *same)) == []


def test_a_counter_that_moves_and_a_value_that_one_cannot_read_are_no_disagreement() -> None:
    one = judge_of_three()
    for count in range(10):
        one.after(
            5,
            alive(),
            reading(pcie_replays=count, recovery_action=0),
            *second(pcie_replays=0, recovery_action=Missing.UNREADABLE),
        )
        assert list(disagreements(one.memory.history, 60)) == []


def test_an_incident_is_confirmed_by_the_next_check_and_ends_when_a_check_lacks_it() -> None:
    one = judge_of_three()
    nvml = (alive(), alive("kmsg"), reading())  # which has no InfoROM to check
    assert ids(one.after(0, *nvml, health(9), alive("dcgm", "", check=1.0))) == []
    assert ids(one.after(20, *nvml, alive("dcgm", ""))) == [], "a heartbeat without a check says nothing about it"
    assert ids(one.after(10, *nvml, health(9, check=2.0), alive("dcgm", "", check=2.0))) == [f"dcgm-9@{GPU}"]
    for check in range(3, 30):
        verdict = one.after(30, *nvml, alive("dcgm", "", check=float(check)))
    assert ids(verdict) == []


def said(code: int, severity: int, health_: int, nvml: Observation) -> Finding:
    """What becomes of an incident that two checks confirm."""
    one = judge_of_three()
    for check in (1.0, 2.0):
        word = health(code, check=check, severity=severity, health=health_)
        verdict = one.after(30, alive(), nvml, word, alive("dcgm", "", check=check))
    return next(fault.finding for fault in verdict.standing if fault.finding.rule == f"dcgm-{code}")


@pytest.mark.parametrize("code", sorted(CODES))
def test_beside_nvml_dcgm_decides_nothing_and_alone_it_says_no_more_than_it_knows(code: int) -> None:
    """Each severity of DCGM's and both results, where NVML reads the same of the GPU and where it can't."""
    signal, own = CODES[code].nvml_reads, CODES[code].row.severity
    for severity, (result, most) in product(range(7), {10: Severity.DEGRADED, 20: Severity.FATAL}.items()):
        if signal:
            beside = said(code, severity, result, reading(**{signal: 0}))
            assert (beside.severity, beside.remedy) == (Severity.NOTICE, Remedy.NONE)
        alone = said(code, severity, result, reading(**({signal: Missing.UNSUPPORTED} if signal else {})))
        assert alone.severity is (Severity.NOTICE if severity == 1 else min(own, most))
        assert ("(a warning)" in alone.message) is (result == 10)


def test_what_nvml_read_before_it_lost_the_gpu_outweighs_no_word_of_dcgms() -> None:
    one, code = judge_of_three(), next(code for code, row in CODES.items() if row.nvml_reads and row.row.severity > 1)
    one.after(0, alive(), reading(**{CODES[code].nvml_reads: 0}))
    for check in (1.0, 2.0):
        verdict = one.after(15, alive(), lost(), health(code, check=check, health=20), alive("dcgm", "", check=check))
    (found,) = (fault.finding for fault in verdict.standing if fault.finding.rule == f"dcgm-{code}")
    assert found.severity is CODES[code].row.severity


def test_an_incident_of_a_mig_instance_is_a_fault_of_it() -> None:
    one = judge_of_three()
    for check in (1.0, 2.0):
        verdict = one.after(
            30, alive(), reading(), health(9, check=check, gpu_instance=3), alive("dcgm", "", check=check)
        )
    assert ids(verdict) == [f"dcgm-9@{GPU}/gi3"]


def test_an_engine_of_another_node_is_believed_in_nothing() -> None:
    one = judge_of_three()
    nvml, other = (alive(), alive("kmsg"), reading(uuid="GPU-ours")), second(uuid="GPU-theirs")
    one.each_poll(20, *nvml, *other, health(80))
    verdict = one.each_poll(60, *nvml, *other, health(80, check=2.0), xid(79, source="dcgm"))
    assert (ids(verdict), verdict.status) == (["dcgm-elsewhere@node"], Status.HEALTHY)
    assert ids(one.each_poll(60, *nvml, *second(uuid="GPU-ours"), alive("dcgm", "", check=3.0))) == []


def test_a_card_that_nvml_can_not_name_is_no_other_node() -> None:
    one = judge_of_three()
    for _ in range(3):
        verdict = one.after(30, alive(), reading(uuid=Missing.UNREADABLE), *second(uuid="GPU-ours"))
    assert ids(verdict) == []


@pytest.mark.parametrize("failure", [Failure.ABSENT, Failure.NO_LIBRARY, Failure.UNREADABLE, Failure.HUNG, None])
def test_a_node_without_its_second_witness_is_healthy_and_never_unknown(failure: Failure | None) -> None:
    one = judge_of_three()
    gone = [failed(failure, "no engine")] if failure else []
    verdict = one.each_poll(900, alive(), alive("kmsg"), reading(), reading(OTHER), *gone)
    assert (verdict.status, verdict.blind_lines) == (Status.HEALTHY, ())
    assert all(fault.finding.severity is Severity.NOTICE for fault in verdict.faults)
    assert bool(verdict.faults) == (failure in (Failure.UNREADABLE, Failure.HUNG, None)), "a source that should speak"
    assert dict(blind(one.memory.history, ("dcgm",), 60)), "what only it saw is held all the same"


def test_every_explanation_is_a_rule() -> None:
    from agent.diagnosis.rules import ROWS as ALL

    named = {rule for rules in EXPLAINED_BY.values() for rule in rules if not rule.endswith("*")}
    assert named <= ALL.keys()
    assert {row.severity for row in ROWS if row.clear == ""} == set(), "no fault of DCGM's alone outlives its evidence"


def test_a_recording_keeps_both_witnesses_readings_apart(tmp_path: Path) -> None:
    config = Config()
    recorder, memory = Recorder(tmp_path / "r", config, "n", ("nvml", "dcgm")), Memory()
    for number in range(3):
        now = 100.0 + 5 * number
        seen = [
            Observation(now, "nvml", Signal.READING, GPU, values={"uuid": "GPU-1", "pcie_replays": 4}, arrived=now),
            Observation(now, "dcgm", Signal.READING, GPU, values={"pcie_replays": 9 + number}, arrived=now),
            replace(health(9, check=now), arrived=now),
            replace(alive("dcgm", "", check=now), arrived=now),
        ]
        memory, verdict = judge(memory, seen, now, now, config.policy, ("nvml", "dcgm"), Orders())
        recorder.judged(now, now, seen, Orders(), verdict)
    recorder.close()
    text = (tmp_path / "r").read_text()
    rounds = [entry for entry in Recording.open(iter(text.splitlines())) if isinstance(entry, Round)]
    last = {(o.source, o.signal): o.values for o in rounds[-1].seen}
    assert last["nvml", Signal.READING]["pcie_replays"] == 4
    assert last["dcgm", Signal.READING] == {"pcie_replays": 11}
    assert last["dcgm", Signal.HEALTH]["check"] == 110.0
    decided = [json.loads(line)["decision"] for line in text.splitlines() if line.startswith('{"decision"')]
    assert list(map(json.loads, replay(io.StringIO(text), None, "h100-8"))) == decided
