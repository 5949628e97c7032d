"""The own Node is read again when it changed, or when nobody can tell; what acts reads it in any case."""

from __future__ import annotations

import pytest

from agent.actions.kube import KubeClient
from agent.config.settings import Budget, Config, Mode
from agent.model.errors import RefusedError
from agent.model.names import MANAGED_LABEL
from agent.model.steps import TakePermit
from agent.model.world import Local, PermitKind
from agent.remediation.plan import plan
from agent.simulation.in_memory_cluster import InMemoryCluster
from tests.actions.test_kube import MERGE, drive, fatal, healthy, taints
from tests.actions.test_permits import Clock

CONFIG = Config(mode=Mode.TAINT, budget=Budget(max_withdrawn=1))
OWN = ("GET", "/api/v1/nodes/n1")
LABEL = {"metadata": {"labels": {"example.com/rack": "7"}}}


class Watched:
    """Node n1 of two, its client, and what the watch tells it."""

    def __init__(self) -> None:
        self.cluster, self.clock = InMemoryCluster(), Clock()
        for name in ("n1", "n2"):
            self.cluster.add_node(name)
        self.client = KubeClient(self.cluster, "n1", CONFIG, self.clock)
        self.other = KubeClient(self.cluster, "n2", CONFIG, self.clock)

    def hears(self) -> None:
        self.client.heard(self.cluster.read("nodes", "n1")["metadata"]["resourceVersion"])

    def reads(self, closely: bool = False) -> int:
        self.cluster.requests.clear()
        self.client.look(closely)
        return self.cluster.requests.count(OWN)


@pytest.fixture
def healthy_node() -> Watched:
    one = Watched()
    drive(one.client, healthy(), CONFIG)
    one.client.look(closely=False)
    one.hears()
    return one


def test_a_healthy_node_that_does_not_change_is_read_once_in_ten_minutes(healthy_node: Watched) -> None:
    reads = 0
    for _ in range(30):
        healthy_node.clock.now += 60
        healthy_node.client.heard(None)  # a bookmark
        reads += healthy_node.reads()
    assert 2 <= reads <= 3


def test_a_node_that_changed_is_read_at_the_next_look(healthy_node: Watched) -> None:
    assert healthy_node.reads() == 0
    healthy_node.cluster("PATCH", "/api/v1/nodes/n1", LABEL, MERGE)
    healthy_node.hears()
    assert healthy_node.reads() == 1
    assert healthy_node.client.look(closely=False).labels["example.com/rack"] == "7"


@pytest.mark.parametrize("trouble", ["the watch broke off", "the watch is silent", "the Node was deleted"])
def test_a_watch_that_says_nothing_vouches_for_nothing(healthy_node: Watched, trouble: str) -> None:
    if trouble == "the watch is silent":
        healthy_node.clock.now += 91
    else:
        healthy_node.client.heard("")
    assert healthy_node.reads() == 1


def test_whoever_bears_a_taint_or_a_permit_of_ours_reads_its_node_at_each_look(healthy_node: Watched) -> None:
    drive(healthy_node.client, fatal(), CONFIG)
    assert taints(healthy_node.cluster)
    for closely in (True, True, False):
        healthy_node.hears()
        assert healthy_node.reads(closely) == 1


def test_a_node_that_waits_for_a_permit_goes_by_the_watch(healthy_node: Watched) -> None:
    drive(healthy_node.other, fatal(), CONFIG)
    for _ in range(2):
        assert healthy_node.reads(closely=True) == 0
        healthy_node.hears()


def test_whoever_takes_a_permit_reads_its_node_just_before(healthy_node: Watched) -> None:
    healthy_node.cluster.requests.clear()
    drive(healthy_node.client, fatal(), CONFIG, rounds=1)
    asked = [
        ("read" if one == OWN else one[0]) for one in healthy_node.cluster.requests if one == OWN or one[0] != "GET"
    ]
    assert asked[:2] == ["read", "POST"]
    assert taints(healthy_node.cluster)


def test_nothing_is_taken_on_the_word_of_a_watch_that_lags(healthy_node: Watched) -> None:
    """A person opted the node out, and the watch does not know yet."""
    drive(healthy_node.other, fatal(), CONFIG)
    for _ in range(3):
        drive(healthy_node.client, fatal(), CONFIG)
        healthy_node.hears()
    healthy_node.client.look(closely=True)
    healthy_node.cluster("PATCH", "/api/v1/nodes/n1", {"metadata": {"labels": {MANAGED_LABEL: "false"}}}, MERGE)
    drive(healthy_node.other, healthy(), CONFIG)
    healthy_node.clock.now += 16
    world = healthy_node.client.look(closely=True)
    assert world.managed, "so the watch has it"
    taken = [step for step in plan(fatal(), world, CONFIG, Local()).steps if isinstance(step, TakePermit)]
    assert [step.kind for step in taken] == [PermitKind.WITHDRAWN]
    with pytest.raises(RefusedError):
        healthy_node.client.do(taken[0])
    assert not healthy_node.client.look(closely=True).managed
    drive(healthy_node.client, fatal(), CONFIG)
    assert not taints(healthy_node.cluster)


def test_a_report_that_was_overtaken_is_made_anew_from_the_node_as_it_is(healthy_node: Watched) -> None:
    healthy_node.cluster("PATCH", "/api/v1/nodes/n1", LABEL, MERGE)
    report = plan(fatal(), healthy_node.client.look(closely=False), CONFIG, Local()).steps[0]
    with pytest.raises(RefusedError):
        healthy_node.client.do(report)
    assert healthy_node.reads() == 1
