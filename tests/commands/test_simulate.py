"""The story of ``simulate``: what it counts as done and found, and what it says when that is not as expected."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from agent.commands import simulate
from agent.commands.simulate import Story
from agent.model.names import HARD_TAINT, SOFT_TAINT
from agent.model.steps import Evict, GivePermit, Retaint
from agent.model.world import PermitKind, Pod, Taint
from agent.simulation.scenario import Scenario
from tests.observe import Judge, alive, reading, xid

HARD, SOFT = Taint(HARD_TAINT, "reboot_node", "NoSchedule"), Taint(SOFT_TAINT, "", "PreferNoSchedule")


def test_a_story_counts_what_was_done_and_found_and_names_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    story, judge = Story(as_json=False), Judge()
    for step in (
        Retaint((SOFT,)),
        Retaint((HARD,)),
        Evict(Pod("a", "train", "uid")),
        Evict(Pod("a", "serve", "uid-2")),
        Retaint(()),
        GivePermit(PermitKind.WITHDRAWN, 0),
    ):
        story.did(step)
    story.judged(judge.after(0, alive(), reading()))
    story.judged(judge.after(1, xid(79)))
    expected = {"taint": 1, "evict": 2, "untaint": 1, "other": 2}
    assert story.close(Scenario("", expect_faults=("xid-79",), expect_steps=expected), "healthy", ()) == 0
    assert "as it should be" in capsys.readouterr().out
    assert story.close(Scenario("", expect_faults=("xid-48",), expect_steps={"taint": 2}), "healthy", ()) == 1
    out = capsys.readouterr().out
    assert "WRONG: fault xid-48 was not found" in out
    assert "WRONG: taint: 1 times, not 2" in out


def test_on_a_cluster_with_permits_to_spare_its_node_is_back_within_the_story(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = simulate._embedded()
    for number in range(30):
        cluster.add_node(f"other-{number}")
    monkeypatch.setattr(simulate, "_embedded", lambda: cluster)
    story = tmp_path / "story.yaml"
    story.write_text(
        """profile: h100-8
duration_s: 20
steps: [{at_s: 1, gpu: 3, xid: 95}, {at_s: 7, gpu: 3, clear: true}]
expect: {status: healthy, faults: [xid-95], steps: {taint: 1, untaint: 1}}
"""
    )
    (machine := tmp_path / "machine").mkdir()
    assert simulate.simulate(str(story), machine, threading.Event(), True, None, None) == 0
