"""Each incident file's timeline of verdicts, and that together they cover every rule."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from agent.diagnosis.rules import ROWS
from tests.incident import FOLDER, play, read

FILES = sorted(FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_verdicts_are_as_written(path: Path) -> None:
    outcome = play(path)
    assert not outcome.wrong, "\n".join(outcome.wrong)
    assert (outcome.false_withdrawals, outcome.missed) == (0, 0)


def test_there_are_enough_and_every_rule_is_in_one() -> None:
    assert len(FILES) >= 60
    text = "\n".join(path.read_text(encoding="utf-8") for path in FILES)
    families = {row.rule for row in ROWS.values() if not row.rule.partition("-")[2].isdecimal()}
    assert [rule for rule in sorted(families) if f"{rule}@" not in text] == []
    assert "xid-" in text
    assert "sxid-" in text
    assert re.search(r"dcgm-\d+@", text)


def test_the_first_ten_complaints_about_other_agents_have_an_incident_each() -> None:
    answered = {read(path).get("complaint") for path in FILES}
    assert set(range(1, 11)) - {9} <= answered, "9, budgets against repair, is the plan's: tests/cluster"
