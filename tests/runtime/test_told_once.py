"""What stands is told once, and what is another thing is told."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agent.actions.kube import KubeClient
from agent.config.settings import Config, Mode
from agent.model.steps import TakePermit, Wait
from agent.model.world import PermitKind
from agent.runtime import log
from agent.runtime.actor import Actor
from agent.runtime.told_once import ToldOnce
from agent.sources.process.serving import tell as tell_of_sources
from tests.actions.test_kube import cluster
from tests.actions.test_permits import Clock
from tests.runtime.test_actor import broken, tell, tried


@pytest.mark.parametrize(
    ("before", "after", "new"),
    [
        ("the budget is spent: 1 of 2 nodes", "the budget is spent: 2 of 2 nodes", False),
        ("denied at 2026-01-01T00:00:00Z by quota", "denied at 2026-01-01T00:00:05.5Z by quota", False),
        ("try again in 1m3s, or in 250ms", "try again in 58.2s, or in 1ms", False),
        ("it waits for 12 s.", "it waits for 7 s.", False),
        ("5 % of 300", "6 % of 299", False),
        ("pod a/train-0 is terminating", "pod a/train-1 is terminating", True),
        ("xid-79@0000:1b:00.0 stands", "xid-79@0000:1c:00.0 stands", True),
        ("no answer from 10.0.0.1:6443", "no answer from 10.0.0.2:6443", True),
        ("node gpu7 is cordoned", "node gpu8 is cordoned", True),
    ],
)
def test_numbers_that_count_on_make_no_news_and_those_in_names_do(before: str, after: str, new: bool) -> None:
    told = ToldOnce(Clock())
    assert told.news([Wait(before)]) == [Wait(before)]
    assert told.news([Wait(after)]) == ([Wait(after)] if new else [])


def test_what_stands_for_a_day_is_one_line_even_if_it_is_gone_for_a_moment_each_minute() -> None:
    clock = Clock()
    told, lines = ToldOnce(clock), 0
    for number in range(86_400 // 5):
        clock.now += 5
        lines += len(told.news([] if number % 12 == 0 else [Wait(f"after {number} s nobody answers")]))
    assert lines == 1
    clock.now += 601
    assert len(told.news([Wait("after 3 s nobody answers")])) == 1, "it ended, and has begun again"


def test_a_webhooks_sentence_of_any_kind_takes_no_time() -> None:
    told = ToldOnce(Clock())
    for hostile in ("1" * 500, "1m" * 250, "1." * 250, "2026-" * 100, "h1m1s" * 100):
        assert len(told.news([Wait(hostile)])) == 1


def test_a_permit_that_is_confirmed_is_not_told_as_taken() -> None:
    made, clock, lines = cluster(), Clock(), list[tuple[str, str]]()
    config = Config(mode=Mode.TAINT)

    def said(event: str, level: str = "info", **facts: Any) -> None:
        if event == "done":
            lines.append((level, str(facts["step"])))

    actor = tried(Actor(config, lambda: KubeClient(made, "n1", config, clock), False, said))
    tell(actor, broken())
    actor.round()
    clock.now += 130
    actor.round()
    assert [line for line in lines if "permit" in line[1]] == [
        ("info", "take withdrawn permit 0"),
        ("debug", "confirm withdrawn permit 0"),
    ]
    assert TakePermit(PermitKind.WITHDRAWN, 0) != TakePermit(PermitKind.WITHDRAWN, 0, confirms=True)


@pytest.mark.parametrize(("level", "written"), [("debug", 3), ("info", 2), ("warning", 1), ("error", 0)])
@pytest.mark.parametrize("form", ["json", "console"])
def test_each_program_logs_from_its_level_on_and_in_its_form(
    capsys: pytest.CaptureFixture[str], level: str, form: str, written: int
) -> None:
    log.configure("n1", level, form)
    for one in ("debug", "info", "warning"):
        log.tell("something happened", one, count=7)
    agent = capsys.readouterr().err.splitlines()
    for one in ("debug", "info", "warning"):
        tell_of_sources(level, form, "something happened", one, count=7)
    sources = capsys.readouterr().err.splitlines()
    assert (len(agent), len(sources)) == (written, written)
    for line in (*agent, *sources):
        assert "something happened" in line
        if form == "json":
            facts = json.loads(line)
            assert (facts["event"], facts["count"]) == ("something happened", 7)
            assert facts["level"] in ("debug", "info", "warning")
        else:
            assert not line.startswith("{")
