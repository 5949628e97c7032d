"""What can't be seen is told as a value with its kind; the words are for people, and nothing reads them back."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from agent.commands.check import in_words
from agent.config.limits import Limits
from agent.model.fault import Reason, Status, Unseen, Verdict
from agent.model.observation import Failure, Observation, Signal
from agent.status.page import page
from agent.status.snapshot import SourceView
from agent.status.state import state
from tests.observe import OTHER, Judge, alive, reading
from tests.status.test_metrics import snapshot

BOTH = ("nvml", "kmsg")


def failed(value: str, raw: str = "", source: str = "kmsg") -> Observation:
    return Observation(0, source, Signal.FAILED, value=value, raw=raw)


def unheard() -> Verdict:
    return Judge(expected=BOTH).after(0, alive(), reading())


def silenced() -> Verdict:
    judge = Judge(expected=BOTH)
    judge.after(0, alive(), reading(), alive("kmsg"))
    return judge.after(61, alive(), reading())


def unread() -> Verdict:
    judge = Judge()
    judge.after(0, alive(), reading(), reading(OTHER))
    return judge.each_poll(70, alive(), reading())


def failing(value: str, raw: str = "") -> Verdict:
    return Judge(expected=BOTH).after(0, alive(), reading(), failed(value, raw))


KINDS = {
    "unheard": (unheard(), {"kmsg": Reason(Unseen.UNHEARD, "not heard yet")}, "kmsg: not heard yet"),
    "silent": (
        silenced(),
        {"kmsg": Reason(Unseen.SILENT, "no poll finished for over 60 s")},
        "kmsg: no poll finished for over 60 s",
    ),
    "unread": (
        unread(),
        {f"GPU {OTHER}": Reason(Unseen.UNREAD, "not read for over 60 s", pci=OTHER)},
        f"GPU {OTHER}: not read for over 60 s",
    ),
    "failed": (
        failing("no_permission", "it may not: be read"),
        {"kmsg": Reason(Unseen.FAILED, "it may not: be read", Failure.NO_PERMISSION)},
        "kmsg: it may not: be read",
    ),
    "failed without words": (failing("hung"), {"kmsg": Reason(Unseen.FAILED, "hung", Failure.HUNG)}, "kmsg: hung"),
    "failed as nobody knows": (
        failing("on_fire"),
        {"kmsg": Reason(Unseen.FAILED, "on_fire", Failure.UNREADABLE)},
        "kmsg: on_fire",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_can_not_be_seen_is_a_value_and_a_line_for_people(kind: str) -> None:
    verdict, blind, line = KINDS[kind]
    assert (verdict.status, verdict.blind, verdict.blind_lines) == (Status.UNKNOWN, blind, (line,))


@pytest.mark.parametrize("kind", KINDS)
def test_state_tells_the_line_as_ever_and_the_kind_beside_it(kind: str) -> None:
    verdict, blind, line = KINDS[kind]
    told = json.loads(json.dumps(state(replace(snapshot(), verdict=verdict), Limits())))
    ((name, reason),) = blind.items()
    assert told["blind"] == [line]
    assert told["unseen"] == {name: {"kind": reason.kind, "failure": reason.failure, "pci": reason.pci}}


def test_the_lines_come_in_one_order_whatever_the_order_of_the_sources() -> None:
    judge = Judge(expected=("nvml", "dcgm", "kmsg"))
    judge.after(0, alive(), reading(), reading(OTHER))
    for _ in range(14):
        verdict = judge.after(5, alive(), reading(), failed("unreadable", "gone"))
    assert verdict.blind_lines == (f"GPU {OTHER}: not read for over 60 s", "kmsg: gone")
    assert Judge(expected=("nvml", "kmsg")).after(0).blind_lines == ("kmsg: not heard yet", "nvml: not heard yet")


def told(*names: str, **blind: str) -> dict[str, Any]:
    """A state with these sources down, of which these are blind."""
    reasons = {name.replace("_", "-"): Reason(Unseen.SILENT, why) for name, why in blind.items()}
    views = tuple(SourceView(name, False, None, 1, 0, None, "gone") for name in names)
    verdict = Verdict(0, Status.UNKNOWN, snapshot().verdict.remedy, blind=reasons)
    return state(replace(snapshot(), verdict=verdict, sources=views), Limits())


def test_a_source_is_told_as_blind_by_its_name_and_not_by_a_line_that_begins_alike() -> None:
    text = in_words(told("fans", "fans-2", fans_2="gone"))
    assert "  without fans: gone\n" in text
    assert "  blind: fans-2: gone\n" in text
    assert "without fans-2" not in text
    assert "absent</span> <code>fans</code>" in page(told("fans", "fans-2", fans_2="gone"), 0)
    assert "blind</span> <code>fans-2</code>" in page(told("fans", "fans-2", fans_2="gone"), 0)
