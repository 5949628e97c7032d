"""What the agent makes of each answer of a real engine's health check, beside what NVML reads of the same GPU.

They are laid down as bytes: a response is its version word, the worst health, the number of incidents, and each of
these in 1044 bytes (system, health, 1024 of text, code, entity group, entity). A real engine of 4.6.0 lays version 5 of
it out so, and one of DCGM 3 version 4.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.model.fault import Verdict
from agent.model.observation import Missing, Observation, Signal, Value
from tests.dcgm.standin import Engine
from tests.incident import CARDS
from tests.observe import OTHER, Judge, alive, reading

ANSWERS: list[dict[str, Any]] = yaml.safe_load((Path(__file__).parent / "answers.yaml").read_text())
WORSE = {"recovery_action": 2}
_POLL_S, _POLLS = 20.0, 20


def as_bytes(answers: list[dict[str, Any]]) -> bytes:
    """From behind the version word on."""
    incidents = [
        struct.pack("<II1024sIII", one["system"], one["health"], answer["words"].encode(), one["code"], 1, 1)
        for answer in answers
        for one in (answer["answer"],)
    ]
    assert {len(incident) for incident in incidents} == {1044}
    return struct.pack("<II", 20, len(incidents)) + b"".join(incidents)


@pytest.fixture
def heard(engine: Engine, tmp_path: Path) -> list[Observation]:
    """What the source says of all of them, one health check long."""
    (tmp_path / "bytes").write_bytes(as_bytes(ANSWERS))
    engine.answers(f"health {tmp_path / 'bytes'}\n")
    with engine.source() as source:
        source.polls(1)
    said = [o for o in source.said if o.signal is Signal.HEALTH]
    return said[: len(ANSWERS)]


def nvml(answer: dict[str, Any], values: dict[str, Any]) -> Iterator[Observation]:
    """Its readings, poll by poll: well at first, then with these values."""
    for poll in range(_POLLS):
        known = {**CARDS[answer.get("card", "h100")], **answer["well"], **(values if poll >= 2 else {})}
        yield reading(OTHER, **{name: at(value, poll) for name, value in known.items()})


def at(value: Any, poll: int) -> Value:
    if value == "unreadable":
        return Missing.UNREADABLE
    return poll * int(value) if isinstance(value, str) and value.startswith("+") else value


def judged(answer: dict[str, Any], word: Observation, readings: Iterator[Observation]) -> Verdict:
    one = Judge(expected=("nvml", "kmsg", "dcgm"))
    for check, read in enumerate(readings):
        values = {**word.values, "check": float(check)}
        again = Observation(0, "dcgm", Signal.HEALTH, word.pci, word.value, values, word.raw)
        verdict = one.after(_POLL_S, alive(), alive("kmsg"), read, again, alive("dcgm", "", check=float(check)))
    return verdict


def in_words(verdict: Verdict) -> str:
    standing = sorted((fault.finding.rule, fault.finding.severity.name.lower()) for fault in verdict.standing)
    return f"{verdict.status}: " + (", ".join(f"{rule} {severity}" for rule, severity in standing) or "nothing")


def told(answer: dict[str, Any], word: Observation) -> dict[str, str]:
    read = partial(nvml, answer)
    beside = {
        "alone": dict.fromkeys(answer["well"], Missing.UNSUPPORTED),
        "well": answer["well"],
        "agrees": answer["agrees"],
        "worse": {**answer["well"], **WORSE},
    }
    return {name: in_words(judged(answer, word, read(values))) for name, values in beside.items()}


def test_what_is_said_of_each_answer_beside_what_nvml_reads(heard: list[Observation]) -> None:
    wrong = []
    for answer, word in zip(ANSWERS, heard, strict=True):
        got = {name: word.values[name] for name in ("system", "health", "severity")}
        assert (word.pci, word.raw, {**got, "code": word.value}) == (OTHER, answer["words"], answer["answer"])
        said = told(answer, word)
        wrong += [f"{answer['words']}: {said}"] if said != answer["tells"] else []
    assert not wrong, "\n".join(wrong)
