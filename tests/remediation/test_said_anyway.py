"""What is wrong with a node is said on it, whoever refuses what would be done about it."""

from __future__ import annotations

from typing import Any

import pytest

from agent.model.errors import UnreachableError
from agent.model.names import HARD_TAINT
from agent.model.neighbours import ASKED
from agent.model.steps import Report, Step
from agent.remediation.plan import seen
from agent.runtime.cycle import Turn
from tests.life import Life
from tests.observe import GPU, OTHER
from tests.remediation.test_presets import REPLACE, asking
from tests.remediation.test_repair import MERGE, RESET, returned

NO = {
    "denied": (403, {"message": 'admission webhook "x" denied the request: no'}),
    "failing": (500, {"message": 'Internal error occurred: failed calling webhook "x": context deadline exceeded'}),
    "invalid": (422, {"message": 'Node "n1" is invalid: no'}),
    "silent": None,
}


class Refused(Life):
    """A node of which somebody refuses what is ``about`` something."""

    about = ""
    how: tuple[int, Any] | None = None

    def __post_init__(self) -> None:
        self.reports = 0
        self.api = self._answered
        super().__post_init__()

    def _answered(self, method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        self.reports += path.endswith("/nodes/n1/status")
        ours = {"permit": "/leases" in path, "taint": path.endswith("/nodes/n1"), "report": path.endswith("n1/status")}
        if method == "GET" or not ours.get(self.about):
            return self.cluster(method, path, *rest, **more)
        if self.how is None:
            raise UnreachableError("timed out")
        return self.how

    def unhealthy(self) -> str:
        """As its condition says it."""
        there = {one["type"]: one for one in self.node()["status"]["conditions"]}
        return there["GpuUnhealthy"]["message"] if there["GpuUnhealthy"]["status"] == "True" else ""


@pytest.mark.parametrize("how", NO)
@pytest.mark.parametrize("about", ["permit", "taint"])
def test_a_node_whose_permit_or_taint_is_refused_is_reported_at_once(about: str, how: str) -> None:
    """Whoever else repairs nodes goes by that, and people do."""
    life = Refused(0)
    life.fault, life.about, life.how = RESET, about, NO[how]
    life.breaks()
    life.tick()
    labels = life.node()["metadata"]["labels"]
    assert f"xid-{RESET}@{GPU}" in life.unhealthy()
    assert (labels["node.kubernetes.io/gpu-error"], labels["gpu-health-agent/state"]) == ("true", "unhealthy")
    assert [kind for kind, *_ in life.cluster._objects].count("events") == 1
    life.run(60)
    told = life.reports
    life.run(240)
    assert life.reports == told, "what is said already is said again"
    life.about = ""
    life.run(1500, rests=True)
    assert (life.repairs, returned(life)) == (["reset_gpu"], True)


@pytest.mark.parametrize("how", NO)
def test_a_withdrawn_node_says_what_else_breaks_while_its_permit_can_not_be_confirmed(how: str) -> None:
    life = Refused(0)
    life.fault = RESET
    life.breaks()
    while not life.tainted():
        life.tick()
    life.about, life.how = "permit", NO[how]
    life.run(300)
    life.breaks(OTHER)
    life.tick()
    assert f"xid-{RESET}@{OTHER}" in life.unhealthy()


class Asks(Refused):
    """A node that asks for another one."""

    asks = False

    def _turned(self, last: Turn) -> None:
        if one := last.planned:
            self.asks = self.asks or any(map(_asks, one.plan.steps))
            said = seen(one.verdict, one.world, last.cycle.config, one.local)
            assert not any(map(_asks, said)), "a request for a replacement without its permit"


def _asks(step: Step) -> bool:
    asks = (ASKED, "RepairExhausted")
    return isinstance(step, Report) and any(one.reason in asks for one in step.conditions)


@pytest.mark.parametrize("stripped", [False, True])
def test_nobody_is_asked_for_another_node_in_a_round_that_a_refused_permit_ended(stripped: bool) -> None:
    """Whoever is asked may end the node past every budget. ``stripped``: somebody takes the taint off meanwhile."""
    life = Asks(0, asking())
    life.fault = REPLACE
    life.breaks()
    for _ in range(40):
        life.tick()
        if stripped:
            life.cluster("PATCH", "/api/v1/nodes/n1", {"spec": {"taints": []}}, MERGE)
    assert life.asks


@pytest.mark.parametrize("about", ["permit", "taint"])
def test_an_api_server_that_asks_for_less_gets_no_report_beside_what_it_refused(about: str) -> None:
    """As it does when a driver's roll-out makes a whole fleet look sick in one second."""
    life = Refused(0)
    life.fault, life.about, life.how = RESET, about, (429, {"message": "too many requests, please try again later"})
    life.breaks()
    told = life.reports
    life.run(60)
    assert (life.reports, life.unhealthy()) == (told, "")
    life.about = ""
    life.run(1500, rests=True)
    assert (life.repairs, returned(life)) == (["reset_gpu"], True)


def test_a_report_that_is_refused_is_not_made_twice_in_a_round() -> None:
    life = Refused(0)
    life.fault, life.about, life.how = RESET, "report", NO["denied"]
    life.breaks()
    life.tick()
    told = life.reports
    life.tick()
    assert life.reports - told == 1


@pytest.mark.parametrize(
    ("about", "what"),
    [
        ("permit", "could not take withdrawn permit 0: timed out"),
        ("taint", f"could not taint the node {HARD_TAINT}=reset_gpu:NoSchedule: timed out"),
        ("report", "could not report GpuUnhealthy=True: timed out"),
    ],
)
def test_a_request_without_an_answer_is_named_where_the_api_server_answers_others(about: str, what: str) -> None:
    """As where a webhook hangs for as long as the API server waits for it."""
    life = Refused(0)
    life.fault, life.about, life.how = RESET, about, None
    life.breaks()
    life.tick()
    assert life.waits == (what,)
