"""Everyone has a turn: through any sequence of situations, crashes and clock steps no permit is held for ever."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.actions.kube import KubeClient
from agent.config.settings import Budget, Config, Mode
from agent.model.errors import RefusedError, UnreachableError
from agent.model.steps import Retaint, Wait
from agent.model.world import Local
from agent.remediation.plan import plan
from agent.remediation.situation import Situation
from tests.actions.test_kube import MERGE, cluster, drive, fatal, healthy, holders, taints
from tests.actions.test_permits import Clock, waits
from tests.life import CONFIG, Life, lives
from tests.observe import GPU
from tests.remediation.test_draining import CHECKPOINT_S, DEADLINE_S, HAPPENS, LATE_S, LEAVES_S, PODS, STEP_S, Site
from tests.remediation.test_repair import RESET

BOUND_S = DEADLINE_S + CHECKPOINT_S + LEAVES_S + LATE_S
WITHDRAWN = "gpu-health-agent-withdrawn-gpu-0"
events = st.tuples(
    st.sampled_from([None, *(what for what in HAPPENS if what is not Situation.TO_WITHDRAW)]),
    st.sampled_from((0, 60, 300, 900)),  # seconds until then
    st.booleans(),  # the agent is killed, and starts anew
    st.sampled_from((0, -10_800, -600, 600, 10_800)),  # its wall clock steps
)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(PODS), st.lists(events, max_size=3))
def test_through_any_sequence_the_draining_permit_goes_back_within_its_bound(
    pod: str, sequence: list[tuple[Situation | None, int, bool, int]]
) -> None:
    site = Site(pod)
    for what, seconds, killed, step_s in sequence:
        until = site.clock.now + seconds
        while site.clock.now < until:
            site.clock.now += STEP_S
            site.round("n1")
        if what:
            HAPPENS[what](site)
        if killed:
            site.client["n1"] = site.starts("n1")
        site.verdict = replace(site.verdict, at=site.verdict.at + step_s)
    assert site.waited_s(BOUND_S) <= BOUND_S


def stuck(life: Life) -> Callable[..., tuple[int, Any]]:
    """Its pod terminates, and never ends."""

    def api(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        if path.endswith("/pods/train/eviction"):
            body = {"metadata": {"deletionTimestamp": "2020-01-01T00:00:00Z", "deletionGracePeriodSeconds": 10**9}}
            life.cluster("PATCH", path.removesuffix("/eviction"), body, MERGE)
            return 201, {}
        return life.cluster(method, path, *rest, **more)

    return api


@pytest.mark.parametrize("opted_out", [False, True])
def test_killed_after_any_write_of_a_drain_that_never_ends_it_lets_others_drain(opted_out: bool) -> None:
    life = Life(RESET, CONFIG)
    life.api = stuck(life)

    def by_a_person(writes: int) -> None:
        if opted_out and writes == 4:  # its eviction
            labels = {"metadata": {"labels": {"gpu-health-agent/managed": "false"}}}
            life.cluster("PATCH", "/api/v1/nodes/n1", labels, MERGE)

    life.after = by_a_person
    for one in lives(life, 100, killed=lambda writes: len(writes) == 1 and writes[0] < 8):
        one.api = stuck(one)
        one.run(LEAVES_S + LATE_S + 60)
        held = {name for name, holder in holders(one.cluster).items() if holder}
        assert held == {WITHDRAWN}, (one.kills, one.waits)
        assert one.tainted()


@pytest.mark.parametrize(("late_s", "killed"), [(40, False), (280, False), (280, True)])
def test_a_permit_that_comes_once_nobody_wants_it_any_more_goes_back(late_s: int, killed: bool) -> None:
    """The API server may carry a request out five minutes after it was sent."""
    life = Life(119)  # the driver asks for nothing
    sent: list[tuple[Any, ...]] = []

    def api(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        if method == "POST" and path.endswith("/leases") and not sent:
            sent.append((method, path, *rest))
            words = {"metadata": {"annotations": {"gpu-health-agent/dismiss": f"xid-119@{GPU}"}}}
            life.cluster("PATCH", "/api/v1/nodes/n1", words, MERGE)
            raise UnreachableError("timed out")
        return life.cluster(method, path, *rest, **more)

    life.api = api
    life.run(late_s)
    assert sent
    assert not life.verdict.fatal
    if killed:
        life._begin()
        life.run(60)
    life.cluster(*sent[0])
    life.run(300)  # as long as nobody knows whether it was this life that asked
    assert (life.holders(), life.tainted()) == ([""], False)
    life.run(60)
    life.cluster.requests.clear()
    life.run(60)
    assert not any("configmaps" in path for _, path in life.cluster.requests), "it is looked for no longer"


@pytest.mark.parametrize("answer", [(403, {"message": "no"}), (500, {"message": "webhook"}), None])
def test_a_node_whose_taint_is_refused_gives_its_permit_back_to_others_and_asks_again(
    answer: tuple[int, Any] | None,
) -> None:
    made, clock, refuses = cluster("n1", "n2", "n3"), Clock(), [True]
    config = Config(mode=Mode.TAINT, budget=Budget(max_withdrawn=1))

    def api(method: str, path: str, body: Any = None, *rest: Any, **more: Any) -> tuple[int, Any]:
        if (method, path) == ("PATCH", "/api/v1/nodes/n1") and refuses[0]:
            if answer is None:
                raise UnreachableError("timed out")
            return answer
        return made(method, path, body, *rest, **more)

    one, two = KubeClient(api, "n1", config, clock), KubeClient(made, "n2", config, clock)

    def round_of_one() -> None:
        with suppress(RefusedError, UnreachableError):
            drive(one, fatal(), config, rounds=1)

    round_of_one()
    assert holders(made)[WITHDRAWN] == "n1"
    while not taints(made, "n2"):
        clock.now += STEP_S
        round_of_one()
        drive(two, fatal(), config)
        assert clock.now < 1000 + 600 + 300 + 3 * STEP_S
    drive(two, healthy(), config)
    round_of_one()
    assert holders(made)[WITHDRAWN] == ""
    clock.now += 301
    round_of_one()
    assert holders(made)[WITHDRAWN] == "n1", "nobody else wanted it"
    refuses[0] = False
    drive(one, fatal(), config)
    assert taints(made) == ["gpu-health-agent/unhealthy"]
    assert waits(one, config)[0].startswith("mode taint")


def test_a_taint_that_was_refused_in_an_earlier_incident_lets_nobody_go_first() -> None:
    made, clock, refuses = cluster("n1", "n2", "n3"), Clock(), [True]
    config = Config(mode=Mode.TAINT, budget=Budget(max_withdrawn=1))

    def api(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        if (method, path) == ("PATCH", "/api/v1/nodes/n1") and refuses[0]:
            return 403, {"message": "no"}
        return made(method, path, *rest, **more)

    one, two = KubeClient(api, "n1", config, clock), KubeClient(made, "n2", config, clock)
    with suppress(RefusedError):
        drive(one, fatal(), config, rounds=1)
    drive(one, healthy(), config)
    one.look(closely=False)
    refuses[0], clock.now = False, clock.now + 86400
    drive(two, fatal(), config)
    drive(two, healthy(), config)
    one.look(closely=True)
    drive(one, fatal(), config)
    assert taints(made) == ["gpu-health-agent/unhealthy"], waits(one, config)


def test_others_have_five_minutes_before_a_taint_that_was_refused_is_asked_for_again() -> None:
    made, clock = cluster("n1", "n2", "n3"), Clock()
    config = Config(mode=Mode.TAINT, budget=Budget(max_withdrawn=1))

    def api(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        return (
            (403, {"message": "no"})
            if (method, path) == ("PATCH", "/api/v1/nodes/n1")
            else made(method, path, *rest, **more)
        )

    one = KubeClient(api, "n1", config, clock)
    tried: list[float] = []
    for _ in range(60):
        steps = plan(fatal(), one.look(closely=True), config, Local()).steps
        if any(isinstance(step, Retaint) for step in steps):
            tried.append(clock.now)
        else:
            assert any(isinstance(step, Wait) and "refused for ten minutes" in step.why for step in steps)
        with suppress(RefusedError):
            for step in steps:
                one.do(step)
        clock.now += STEP_S
    pauses = [later - earlier for earlier, later in pairwise(tried)]
    assert {*pauses} == {STEP_S, 300 + 2 * STEP_S}
