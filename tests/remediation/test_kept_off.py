"""What becomes of a repair while somebody keeps the agent from acting: its end is written down all the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from agent.config.settings import Mode
from agent.remediation.records import Stage
from tests.life import CONFIG, Life

GSP, HALTED = 119, 62  # a reset cures both, and the driver asks for none
MERGE = "application/merge-patch+json"
PAUSE = ("configmaps", "gpu-health-agent", "gpu-health-agent-pause")


def _pause(life: Life, keeps: bool) -> None:
    life.cluster._objects.pop(PAUSE, None)
    if keeps:
        life.cluster._store(*PAUSE[:2], {"metadata": {"name": PAUSE[2]}, "data": {"paused": "true"}})


def _labelled(key: str, value: str) -> Callable[[Life, bool], None]:
    def label(life: Life, keeps: bool) -> None:
        body: dict[str, Any] = {"metadata": {"labels": {key: value if keeps else None}}}
        life.cluster("PATCH", "/api/v1/nodes/n1", body, MERGE)

    return label


def _mode(mode: Mode) -> Callable[[Life, bool], None]:
    def roll_out(life: Life, keeps: bool) -> None:
        life.config = CONFIG.model_copy(update={"mode": mode}) if keeps else CONFIG
        life._begin()

    return roll_out


UPGRADE = _labelled("nvidia.com/gpu-driver-upgrade-state", "pod-restart-required")
KEEPS = {
    "pause": _pause,
    "another controller": _labelled("dgxc.nvidia.com/nvsentinel-state", "draining"),
    "mode observe": _mode(Mode.OBSERVE),
    "mode taint": _mode(Mode.TAINT),
}


def _ended_meanwhile(keeps: Callable[[Life, bool], None]) -> Life:
    life = Life(GSP)
    while not life.repairs:
        life.tick()
    keeps(life, True)
    life.run(60)
    return life


@pytest.mark.parametrize("keeps", [*KEEPS.values(), UPGRADE], ids=[*KEEPS, "upgrade"])
def test_the_end_of_a_reset_is_written_down_whatever_keeps_the_agent_from_acting(
    keeps: Callable[[Life, bool], None],
) -> None:
    life = _ended_meanwhile(keeps)
    assert (life.ended, [one.stage for one in life.records().attempts]) in (
        (["reset_gpu"], [Stage.DONE]),
        (["reset_gpu"], []),
    )


@pytest.mark.parametrize("keeps", KEEPS.values(), ids=KEEPS)
def test_a_reset_is_no_cure_of_what_came_after_it_though_it_ended_while_the_agent_was_kept_from_acting(
    keeps: Callable[[Life, bool], None],
) -> None:
    """As where all agents are paused for a roll-out: the next life knows no order of the two but what is written."""
    life = _ended_meanwhile(keeps)
    life.breaks(code=HALTED)
    life.run(40)
    life._begin()
    life.run(40)
    keeps(life, False)
    life.run(300)
    assert life.ended == ["reset_gpu"] * 2, life.waits


def test_a_pause_leaves_nobody_blind_once_the_reset_under_way_has_ended() -> None:
    assert not _ended_meanwhile(_pause).released
