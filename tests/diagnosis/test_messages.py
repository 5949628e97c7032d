"""What people are told to do is said of this node, in words that stay true beside whatever else stands."""

from __future__ import annotations

import shlex
from dataclasses import replace

import pytest

from agent.config.limits import Limits
from agent.config.settings import Mode
from agent.diagnosis.advice import clears, commands, next_step
from agent.diagnosis.rules import ROWS
from agent.model.fault import Fault, Finding, Severity
from agent.model.observation import Observation, Signal
from agent.model.remedy import Remedy
from tests.incident import UNTRUE
from tests.observe import GPU, Judge, alive, ids, reading


def test_no_rules_words_hold_a_placeholder_or_what_another_fault_makes_untrue() -> None:
    for row in (*ROWS.values(), *(replace(ROWS["xid-79"], remedy=remedy) for remedy in Remedy)):
        for pci, uuid in (("", ""), (GPU, ""), (GPU, "GPU-1b")):
            found = row.found(Observation(0, "nvml", Signal.READING, pci), Limits())
            for severity in Severity:  # an override gives any rule any of them
                fault = Fault(replace(found, severity=severity), 0.0, 0.0, 0.0, uuid)
                told = [found.message, clears(fault.finding, Limits())]
                told += [next_step(fault, mode, ["GPU-43"] if uuid else []) for mode in Mode]
                assert [text for text in told if UNTRUE.search(text)] == []


def test_what_can_be_pasted_names_the_whole_incident_and_all_gpus_and_runs_nothing_else() -> None:
    def found(rule: str) -> Finding:
        return ROWS[rule].found(Observation(0, "nvml", Signal.READING, GPU), Limits())

    symptom = Fault(found("ecc-uncorrected"), 0.0, 0.0, 0.0, "GPU-1b")
    fault = replace(symptom, finding=found("xid-95"), joined=(symptom,))
    reset, dismissal = commands(fault, "node-1", ["GPU-43"])
    assert reset == "nvidia-smi --gpu-reset -i GPU-1b,GPU-43"
    assert dismissal == f"kubectl annotate node node-1 gpu-health-agent/dismiss=xid-95@{GPU},ecc-uncorrected@{GPU}"
    hostile = replace(fault, uuid="GPU-$(reboot)")
    assert shlex.split(commands(hostile, "a;b")[0])[-1] == "GPU-$(reboot)"
    assert shlex.split(commands(hostile, "a;b")[1])[3] == "a;b"
    for other in (replace(fault, proved=True), replace(fault, finding=found("xid-79"))):
        assert len(commands(other, "node-1")) == 1, "no reset where it is not what is to be done"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"fatal": 1, "link": 62}, "(NVSwitch 0000:05:00.0, link 62, Fatal by the driver)"),
        ({"fatal": 0}, "(NVSwitch 0000:05:00.0, Non-fatal by the driver)"),
        ({}, "(NVSwitch 0000:05:00.0)"),
    ],
)
def test_a_switchs_error_names_its_link_and_the_drivers_word_where_the_line_has_them(
    values: dict[str, int], words: str
) -> None:
    said = Observation(0, "kmsg", Signal.SXID, "0000:05:00.0", 20034, values, raw="SXid")
    assert Judge().after(0, alive(), reading(), said).faults[0].finding.message.endswith(words)


def test_what_an_engine_tells_of_some_switch_joins_the_switch_that_the_kernel_named() -> None:
    judge = Judge()
    said = Observation(0, "kmsg", Signal.SXID, "0000:05:00.0", 20034, {"fatal": 1}, raw="SXid")
    unplaced = replace(said, source="dcgm", pci="", raw="DCGM field 856")
    assert ids(judge.after(0, alive(), reading(), unplaced)) == ["sxid-20034@node"]
    assert ids(judge.after(1, said)) == ["sxid-20034@node/0000:05:00.0"]
