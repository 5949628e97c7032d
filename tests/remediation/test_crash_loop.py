"""A node whose agent never lives for long keeps no other waiting: the draining permit goes back as another's does."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from itertools import cycle
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.config.settings import Config
from agent.model.steps import Evict, GivePermit, Report, TakePermit
from agent.model.world import Local, PermitKind
from agent.remediation.plan import plan
from agent.remediation.situation import Situation
from agent.runtime.cycle import Cycle
from tests.actions.test_kube import holders, node
from tests.exploration.server import Manner, Server
from tests.life import POLL_S, Life
from tests.remediation.test_draining import (
    ABANDONED_S,
    CHECKPOINT_S,
    DEADLINE_S,
    DRAINING,
    FAULTS,
    HAPPENS,
    HOSTILE,
    LATE_S,
    LEAVES_S,
    PODS,
    STEP_S,
    Site,
    annotation,
)
from tests.remediation.test_draining import CONFIG as DRAINS

CONFIG = Config.model_validate({"mode": "evict", "budget": {"max_withdrawn": 2}})
_FATAL, _HOUR_S, _DAYS_S = 79, 3600, 10**7
_STARTS_S = 40  # a start, until the faults have been gathered, and the rounds of those that wait


class Servers(Server):
    """Several API servers answer in turn, each by a clock of its own."""

    def __init__(self, pool: Pool, ahead_s: tuple[float, ...]) -> None:
        super().__init__(Random(1), lambda: pool.now)
        self._ahead_s = cycle(ahead_s)

    def clock(self, later_s: float = 0.0) -> str:
        self.ahead_s = next(self._ahead_s)
        return super().clock(later_s)


@dataclass
class Broken(Life):
    """Its faults are gathered after each start, as they are outside tests."""

    ends_s: float = 5.0  # from when its pod is asked until that has ended
    grace_s: int = 30
    config: Config = CONFIG

    def _settles(self) -> None:
        assert isinstance(self.cluster, Server)
        self.cluster.manners[f"research/of-{self.name}"] = Manner(grace_s=self.grace_s, ends_s=self.ends_s)
        self.cluster.add_node(self.name)
        self.cluster.pod("research", f"of-{self.name}", self.name)

    def _cycle(self) -> Cycle:
        return replace(self.cycle, config=self.config)


class Pool:
    """Two broken nodes: one's agent lives for ``life_s``, and its pod ends never."""

    def __init__(
        self, grace_s: int, life_s: float, down_s: float, ahead_s: tuple[float, ...], stepped_s: float
    ) -> None:
        self.now, self.life_s, self.down_s = 1000.0, life_s, down_s
        self.server = Servers(self, ahead_s)
        one = Broken(_FATAL, name="n1", cluster=self.server, ends_s=float("inf"), grace_s=grace_s, stepped_s=stepped_s)
        self.one, self.other = one, Broken(0, name="n2", cluster=self.server)
        self.born = self.now
        while not self.server.ends:
            self.passes()
        self.asked = self.now
        self.other.breaks(code=_FATAL)

    def passes(self) -> None:
        self.now += POLL_S
        self.server.kubelets(set())
        for one in (self.other, self.one):
            if one is self.one and self.now < self.born:
                one.now += POLL_S
            else:
                one.tick()
        if self.now - self.born >= self.life_s:
            self.born = self.now + self.down_s
            self.one._begin()

    def waited_s(self, most_s: float) -> float:
        """From when the pod was asked until another drains."""
        while holders(self.server)[DRAINING] == "n1" and self.now - self.asked <= most_s:
            self.passes()
        return self.now - self.asked


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from([*HAPPENS]),
    st.sampled_from(PODS),
    st.lists(st.sampled_from((1, 2, 3, 4, 5, 7, 13)), min_size=1, max_size=4),
)
def test_in_any_situation_an_agent_that_is_started_anew_again_and_again_keeps_no_other_node_waiting_for_ever(
    what: Situation, pod: str, rounds: list[int]
) -> None:
    site, waited_s, lives = Site(pod), 0.0, cycle(rounds)
    HAPPENS[what](site)
    goes_on = what is Situation.WITHDRAWN and pod not in HOSTILE
    most_s = LEAVES_S + LATE_S + 3 * STEP_S + (DEADLINE_S + CHECKPOINT_S if goes_on else 0)
    while waited_s <= most_s and holders(site.made)[DRAINING] == "n1":
        site.client["n1"] = site.starts("n1")
        waited_s += site.waited_s((next(lives) - 1) * STEP_S)
    assert waited_s <= most_s


def drain_of(site: Site) -> dict[str, Any]:
    return dict(json.loads(node(site.made)["metadata"]["annotations"][FAULTS])["drain"])


def test_before_a_pod_is_asked_again_the_node_no_longer_says_that_nobody_is() -> None:
    site = Site("terminating")
    quiet_from = drain_of(site)["quiet_from"]
    site.clock.now += STEP_S
    site.round("n1")
    assert drain_of(site)["quiet_from"] == quiet_from, "nothing has changed, and nothing is written"
    site.made.add_pod("research", "more", "n1", owner="Job")
    steps = plan(site.verdict, site.client["n1"].look(closely=True), DRAINS, Local()).steps
    told = [n for n, step in enumerate(steps) if isinstance(step, Report) and "quiet_from" not in (step.stored or "")]
    asks = [n for n, step in enumerate(steps) if isinstance(step, Evict)]
    assert told < asks
    site.round("n1")
    assert "quiet_from" not in drain_of(site)
    site.round("n1")
    assert drain_of(site)["quiet_from"] == int(site.clock.now), "it has gone: again nobody is asked"


@pytest.mark.parametrize("times", [10**9, -5, "soon"])
def test_a_time_that_makes_no_sense_gives_no_permit_back(times: object) -> None:
    site = Site("terminating")
    stored = json.loads(node(site.made)["metadata"]["annotations"][FAULTS])
    annotation(json.dumps({**stored, "drain": {**stored["drain"], "quiet_from": times}}))(site)
    assert site.waited_s(LEAVES_S - 2 * STEP_S) > LEAVES_S - 2 * STEP_S


KEPT = TakePermit(PermitKind.WITHDRAWN, 0, confirms=True)


def rebooted(site: Site, number: int) -> None:
    site.verdict = replace(site.verdict, boot_id=f"boot-{number}")
    site.client["n1"] = site.starts("n1")


def test_a_time_of_the_boot_before_gives_no_permit_back() -> None:
    """Its clock may have stood lower: what was asked last there may still arrive."""
    site = Site("terminating")
    assert drain_of(site)["quiet_from"]
    site.clock.now += 2 * LEAVES_S
    rebooted(site, 2)
    steps = plan(site.verdict, site.client["n1"].look(closely=True), DRAINS, Local()).steps
    assert not any(isinstance(step, GivePermit) for step in steps)


def test_a_drain_that_begins_anew_after_a_reboot_asks_nobody_under_the_permit_of_before() -> None:
    site = Site("refused")
    rebooted(site, 2)
    steps = plan(site.verdict, site.client["n1"].look(closely=True), DRAINS, Local()).steps
    assert not any(isinstance(step, Evict | TakePermit) and step != KEPT for step in steps)
    assert LATE_S <= site.waited_s(86400) <= LATE_S + STEP_S


@pytest.mark.parametrize("pod", PODS)
def test_a_machine_that_reboots_again_and_again_keeps_no_other_node_waiting_for_ever(pod: str) -> None:
    site, waited_s, most_s = Site(pod), 0.0, ABANDONED_S + 2 * STEP_S
    for number in range(2, 20):
        rebooted(site, number)
        waited_s += site.waited_s(3 * STEP_S)
        if holders(site.made)[DRAINING] != "n1":
            break
    assert waited_s <= most_s


SCHEDULES = [
    # its life, the pause after it, its pod's grace; how far two API servers and its own clock are ahead
    (30, 0, 30, (0, 0), 0),
    (100, 40, 30, (0, 0), -_HOUR_S),
    (200, 0, 600, (0, 0), 0),
    (290, 0, _DAYS_S, (0, _HOUR_S), 0),
    (290, 60, 2 * _DAYS_S, (0, 0), _HOUR_S),
    (100, 0, 2 * _DAYS_S, (-_HOUR_S, 0), 0),
    (310, 0, 600, (0, 0), -_HOUR_S),
    (310, 0, 2 * _DAYS_S, (0, _HOUR_S), -_HOUR_S),
]


@pytest.mark.parametrize(("life_s", "down_s", "grace_s", "ahead_s", "stepped_s"), SCHEDULES)
def test_an_agent_that_is_killed_again_and_again_keeps_its_draining_permit_for_five_minutes_longer_at_most(
    life_s: float, down_s: float, grace_s: int, ahead_s: tuple[float, ...], stepped_s: float
) -> None:
    pool = Pool(grace_s, life_s, down_s, ahead_s, stepped_s)
    most_s = min(grace_s, 600) + 60 + LATE_S + _STARTS_S + down_s
    assert min(grace_s, 600) <= pool.waited_s(most_s) <= most_s, pool.other.waits
