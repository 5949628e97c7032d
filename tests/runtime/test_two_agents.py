"""Two agents on one node know of each other: the one that began last acts, the other one says so and writes nothing."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import pytest

from agent.actions.kube import KubeClient
from agent.config.settings import Config, Mode
from agent.model.errors import UnreachableError
from agent.model.fault import Verdict
from agent.model.world import BY_HAND
from agent.remediation.stored import load
from agent.runtime.cycle import Cycle, turn
from agent.runtime.exchange import Judged
from agent.simulation.in_memory_cluster import InMemoryCluster
from tests.actions.test_kube import EVICT, MERGE, cluster, fatal, healthy, node, taints


@dataclass
class Agent:
    """One life, driven by hand; ``name`` is that of its pod, or a word of its own."""

    made: InMemoryCluster
    name: str
    waits: tuple[str, ...] = ()
    done: int = 0
    cycle: Cycle = field(init=False)

    def __post_init__(self) -> None:
        life = self.name
        if not life.startswith(BY_HAND):
            self.made.add_pod("gpu-health-agent", self.name, "n1", gpus=0, owner="DaemonSet")
            life = str(self.made.read("pods", self.name, "gpu-health-agent")["metadata"]["uid"])
        self.client, self.now = KubeClient(self.made, "n1", EVICT), 2000.0
        self.cycle = Cycle(EVICT, 0.0, life=life)
        self.round(None)

    def round(self, verdict: Verdict | None) -> int:
        """How many steps it did until it rests."""
        done = 0
        for _ in range(10):
            self.now += 20
            last = turn(self.cycle, Judged(verdict), self.client, lambda _: None, lambda: self.now)
            self.cycle, self.waits, done = last.cycle, tuple(w.why for w in last.waits), done + len(last.done)
            if not last.again:
                break
        self.done += done
        return done

    def ends(self) -> None:
        """Its pod is gone, however it went."""
        del self.made._objects["pods", "gpu-health-agent", self.name]

    @property
    def stands_back(self) -> bool:
        return any(why.startswith("another agent") for why in self.waits)


def writer(made: InMemoryCluster) -> str:
    stored = load(node(made)["metadata"]["annotations"]["gpu-health-agent/faults"], 0.0)
    return stored.writer.life if stored.writer else ""


def test_of_two_agents_the_one_that_began_last_acts_and_the_other_says_who_it_is() -> None:
    made = cluster()
    one = Agent(made, "one")
    one.round(healthy())
    other = Agent(made, "other")
    assert other.round(fatal()) > 0
    assert (one.round(fatal()), one.stands_back) == (0, True)
    assert writer(made) == other.cycle.life
    assert any(other.cycle.life in why for why in one.waits)
    for _ in range(3):
        assert (one.round(fatal()), other.stands_back) == (0, False)
        other.round(fatal())
    assert made.evicted == ["research/train"]


def test_in_a_rolling_update_the_new_pod_goes_on_with_a_drain_at_once() -> None:
    made = cluster()
    one = Agent(made, "one")
    one.round(fatal())
    other = Agent(made, "other")
    other.round(fatal())
    assert writer(made) == other.cycle.life, "before it does anything"
    assert not other.stands_back
    one.ends()
    assert not other.stands_back


def test_the_claim_is_written_before_a_pod_is_asked_to_leave() -> None:
    made = cluster()
    Agent(made, "one").round(fatal())
    made.add_pod("research", "late", "n1", owner="Job")
    other, before = Agent(made, "other"), len(made.requests)
    other.round(fatal())
    paths = [path for method, path in made.requests[before:] if method in ("PATCH", "POST")]
    assert paths.index("/api/v1/nodes/n1/status") < paths.index("/api/v1/namespaces/research/pods/late/eviction")


def test_an_agent_on_a_healthy_node_writes_no_claim_for_its_own_sake() -> None:
    made = cluster()
    Agent(made, "one").round(healthy())
    for name in ("other", "third"):
        agent = Agent(made, name)
        assert [agent.round(healthy()) for _ in range(5)] == [0] * 5
    assert Agent(made, "other").done == 0


def test_whoever_stands_back_acts_again_once_the_other_ones_pod_is_gone() -> None:
    made = cluster()
    one = Agent(made, "one")
    one.round(healthy())
    other = Agent(made, "other")
    other.round(fatal())
    assert one.round(fatal()) == 0
    other.ends()
    assert one.round(healthy()) > 0
    assert (writer(made), one.stands_back) == (one.cycle.life, False)


def ended(code: int) -> list[dict[str, Any]]:
    return [
        {"name": "sources", "state": {"running": {}}},
        {"name": "agent", "state": {"terminated": {"exitCode": code}}},
    ]


@pytest.mark.parametrize(
    ("policy", "status", "over"),
    [
        ("Always", {"phase": "Failed", "reason": "Evicted"}, True),
        ("Always", {"phase": "Succeeded"}, True),
        ("Never", {"phase": "Running", "containerStatuses": ended(1)}, True),
        ("OnFailure", {"phase": "Running", "containerStatuses": ended(0)}, True),
        ("OnFailure", {"phase": "Running", "containerStatuses": ended(1)}, False),
        ("Always", {"phase": "Running", "containerStatuses": ended(0)}, False),  # it begins anew
        ("Never", {"phase": "Running", "containerStatuses": ended(1)[:1]}, False),
        ("Never", {"phase": "Running", "containerStatuses": 7}, False),  # what can't be read may still run
        ("Never", {"phase": "Running", "containerStatuses": [{"state": "terminated"}]}, False),
        ("Never", {"phase": "Unknown"}, False),
    ],
)
def test_an_agent_whose_pod_has_ended_is_no_second_agent_though_its_object_stays(
    policy: str, status: dict[str, Any], over: bool
) -> None:
    made = cluster()
    one = Agent(made, "one")
    one.round(healthy())
    other = Agent(made, "other")
    other.round(fatal())
    assert (one.round(fatal()), one.stands_back) == (0, True)
    path = "/api/v1/namespaces/gpu-health-agent/pods/other"
    made("PATCH", path, {"spec": {"restartPolicy": policy}, "status": status}, MERGE)
    assert (one.round(healthy()) > 0, not one.stands_back) == (over, over)


def test_whoever_takes_over_gives_nothing_back_while_what_the_other_asked_for_may_still_arrive() -> None:
    made = cluster()

    def hangs(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        if path.endswith("/eviction"):
            raise UnreachableError("timed out")
        return made(method, path, *rest, **more)

    one = Agent(made, "one")
    one.client = KubeClient(made, "n1", EVICT, lambda: one.now)
    one.round(healthy())
    one.now += 3600
    other = Agent(made, "other")
    other.now, other.client = one.now, KubeClient(hangs, "n1", EVICT, lambda: other.now)
    other.round(fatal())
    assert any("timed out" in why for why in other.waits)
    assert one.round(fatal()) == 0
    other.ends()
    until = other.now + 240
    while one.now < until:
        one.round(healthy())
        assert taints(made), "the eviction may still arrive"
    one.now += 120
    one.round(healthy())
    assert not taints(made)


def test_of_an_agent_that_was_started_by_hand_nobody_knows_when_it_ends_and_that_is_said() -> None:
    made = cluster()
    one = Agent(made, "one")
    one.round(healthy())
    other = Agent(made, f"{BY_HAND}0123")
    other.round(fatal())
    assert one.round(fatal()) == 0
    assert one.waits == (
        "another agent, started by hand (by-hand-0123), acts on this node: once it has ended, start this one anew",
    )
    one.ends()
    again = Agent(made, "again")
    assert again.round(healthy()) > 0


def test_a_container_that_begins_anew_in_the_same_pod_is_the_same_agent() -> None:
    made = cluster()
    one = Agent(made, "one")
    one.round(fatal())
    one.cycle = Cycle(EVICT, 0.0, life=one.cycle.life)
    one.round(None)
    assert one.round(healthy()) > 0
    assert not one.stands_back


def test_an_older_agents_annotation_claims_the_node_for_nobody() -> None:
    made = cluster()
    old = Agent(made, "old")
    old.cycle = Cycle(EVICT, 0.0)
    old.round(fatal())
    assert writer(made) == ""
    one = Agent(made, "one")
    assert one.round(fatal()) > 0
    assert (writer(made), one.stands_back) == (one.cycle.life, False)


@pytest.mark.parametrize("seed", range(30))
def test_however_several_agents_begin_end_and_take_turns_soon_one_of_them_acts_and_no_other(seed: int) -> None:
    chance, made = random.Random(seed), cluster()
    agents = [Agent(made, "agent-0")]
    for number in range(1, 40):
        match chance.randrange(6):
            case 0:
                agents.append(Agent(made, f"agent-{number}"))
            case 1 if len(agents) > 1:
                agents.pop(chance.randrange(len(agents))).ends()
            case _:
                chance.choice(agents).round(chance.choice((healthy(), fatal())))
    for verdict in (healthy(), fatal(), healthy(), fatal()):
        for agent in agents:
            agent.round(verdict)
    acting = [agent for agent in agents if not agent.stands_back]
    assert [agent.cycle.life for agent in acting] == [writer(made)]
    assert [agent.round(healthy()) > 0 for agent in agents] == [agent in acting for agent in agents]


def test_an_agent_that_only_observes_keeps_no_other_from_acting() -> None:
    made, observe = cluster(), Config(mode=Mode.OBSERVE)
    one = Agent(made, "one")
    one.round(healthy())
    canary = Agent(made, "canary")
    canary.client, canary.cycle = KubeClient(made, "n1", observe), Cycle(observe, 0.0, life=canary.cycle.life)
    canary.round(None)
    assert (canary.round(fatal()), canary.stands_back) == (0, True)
    assert one.round(fatal()) > 0, one.waits
    assert made.evicted == ["research/train"]
    one.ends()
    canary.round(fatal())
    assert not canary.stands_back
