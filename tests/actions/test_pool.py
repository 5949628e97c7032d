"""Whatever becomes of the permits: a node that is out of service counts, and it counts once."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.actions.kube import KubeClient
from agent.config.settings import Budget, Config, Mode
from agent.model.names import HARD_TAINT, OUT_LABEL, WITHDRAWN_LABEL
from agent.model.steps import TakePermit, Wait
from agent.model.text import rfc3339
from agent.model.world import Local, PermitKind
from agent.remediation.budget import free_permit
from agent.remediation.plan import plan
from agent.runtime.cycle import Cycle, turn
from agent.runtime.exchange import Judged
from agent.simulation.in_memory_cluster import InMemoryCluster
from tests.actions.test_kube import EVICT, MERGE, cluster, drive, fatal, healthy, holders, node, taints
from tests.actions.test_permits import AT_ONCE, Clock, Fleet, waits
from tests.observe import START

NOT_READY = {"status": {"conditions": [{"type": "Ready", "status": "False"}]}}
LEASES = "/apis/coordination.k8s.io/v1/namespaces/gpu-health-agent/leases"


def tainting(limit: int | str = 1, **budget: Any) -> Config:
    return Config(mode=Mode.TAINT, recurrence=AT_ONCE, budget=Budget(max_withdrawn=limit, **budget))


def labelled(made: InMemoryCluster, name: str = "n1") -> bool:
    return bool((node(made, name)["metadata"].get("labels") or {}).get(WITHDRAWN_LABEL) == "true")


def withdrawn(made: InMemoryCluster) -> set[str]:
    return {name for (kind, _, name), one in made._objects.items() if kind == "nodes" and one["spec"].get("taints")}


def without_leases(made: InMemoryCluster) -> None:
    for key in [key for key in made._objects if key[0] == "leases"]:
        del made._objects[key]


def test_the_label_of_a_withdrawn_node_comes_and_goes_in_the_write_of_its_taint() -> None:
    made = cluster()

    def watched(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        answer = made(method, path, *rest, **more)
        assert labelled(made) == (HARD_TAINT in taints(made)), (method, path)
        return answer

    client = KubeClient(watched, "n1", EVICT)
    drive(client, fatal())
    assert labelled(made)
    drive(client, healthy())
    assert (labelled(made), taints(made)) == (False, [])


def test_a_degraded_node_that_gets_no_new_pod_bears_it_as_well() -> None:
    made = cluster("n1", "n2", "n3")
    taint = {"key": "gpu-health-agent/degraded", "effect": "NoSchedule"}
    made("PATCH", "/api/v1/nodes/n1", {"spec": {"taints": [taint]}}, MERGE)
    client = KubeClient(made, "n1", EVICT)
    client.do(plan(fatal(), client.look(closely=False), EVICT, Local()).steps[0])  # its report
    assert labelled(made)


@pytest.mark.parametrize("stored", ["its own", None, '{"version":2}'])
def test_a_node_that_an_older_agent_withdrew_gets_the_label_at_first_contact(stored: str | None) -> None:
    made = cluster()
    drive(KubeClient(made, "n1", EVICT), fatal())
    made("PATCH", "/api/v1/nodes/n1", {"metadata": {"labels": {WITHDRAWN_LABEL: None}}}, MERGE)
    if stored != "its own":
        made("PATCH", "/api/v1/nodes/n1", {"metadata": {"annotations": {"gpu-health-agent/faults": stored}}}, MERGE)
    drive(KubeClient(made, "n1", EVICT), fatal() if stored else healthy(), rounds=1)
    assert labelled(made)


@pytest.mark.parametrize("seed", range(3))
def test_a_namespace_that_was_installed_anew_without_a_release_takes_no_node_past_the_budget(seed: int) -> None:
    """Thirty sick nodes of a hundred, of which ten may be withdrawn; then their Leases are gone."""
    chance, config, names = random.Random(seed), tainting("10%"), [f"n{i}" for i in range(100)]
    made, sick = cluster(*names), names[:30]
    for name in sick:
        drive(KubeClient(made, name, config), fatal(), config)
    assert len(before := withdrawn(made)) == 10
    without_leases(made)
    chance.shuffle(sick)
    client = {name: KubeClient(made, name, config) for name in sick}
    for name in (*sick, *sick):
        drive(client[name], fatal(), config)
        assert withdrawn(made) == before, name
    assert {*holders(made).values()} == before, "each has its permit again"


ANOTHER = "nvidia.com/gpu.present=true,os!=windows"  # the same nodes by another selector


def test_a_pool_by_another_selector_counts_the_nodes_that_were_withdrawn_by_the_old_one() -> None:
    made, old, new = cluster("n1", "n2", "n3"), tainting(), tainting(pool_selector=ANOTHER)
    drive(KubeClient(made, "n1", old), fatal(), old)
    drive(KubeClient(made, "n2", new), fatal(), new)
    assert withdrawn(made) == {"n1"}
    assert waits(KubeClient(made, "n2", new), new)[0].endswith("out of service otherwise: n1")
    drive(KubeClient(made, "n1", new), fatal(), new)
    assert holders(made)[f"gpu-health-agent-withdrawn-{new.budget.pool}-0"] == "n1"


def test_two_selectors_of_the_same_nodes_allow_a_drain_and_a_withdrawal_of_the_hour_each() -> None:
    """A stated limit: while another selector is rolled out the agents are to pause."""
    made = cluster("n1", "n2", "n3")
    for name, selector in (("n1", "nvidia.com/gpu.present=true"), ("n2", ANOTHER)):
        config = tainting(2, per_hour=1, max_draining=1, pool_selector=selector)
        client = KubeClient(made, name, config)
        world = client.look(closely=True)
        for kind in (PermitKind.HOURLY, PermitKind.DRAINING):
            assert free_permit(world, kind, config.budget) == 0
            client.do(TakePermit(kind, 0))


def test_a_withdrawn_node_without_a_permit_gets_one_even_where_others_are_out_besides() -> None:
    """It takes no node out: else a NotReady one would keep it from its repair for ever."""
    made, config = cluster("n1", "n2"), tainting()
    drive(KubeClient(made, "n1", config), fatal(), config)
    without_leases(made)
    made("PATCH", "/api/v1/nodes/n2", NOT_READY, MERGE)
    drive(KubeClient(made, "n1", config), fatal(), config)
    assert [*holders(made).values()] == ["n1"]


@pytest.mark.parametrize("kind", PermitKind)
def test_a_holder_that_is_not_ready_counts_once_whatever_it_holds(kind: PermitKind) -> None:
    made, config = cluster("n1", "n2", "n3", "n4"), tainting(2, per_hour=5)
    other = KubeClient(made, "n3", config)
    other.look(closely=True)
    other.do(TakePermit(kind, 0))
    made("PATCH", "/api/v1/nodes/n3", NOT_READY, MERGE)
    for name in ("n1", "n2"):
        drive(KubeClient(made, name, config), fatal(), config)
    assert withdrawn(made) == {"n1"}, "of two, n3 is one"


def test_a_holder_whose_permit_is_abandoned_still_counts_while_it_is_not_ready() -> None:
    made, clock, config = cluster("n1", "n2"), Clock(), tainting()
    drive(KubeClient(made, "n1", config), fatal(), config, cuts=[1], rounds=1)  # it took the permit and died
    made("PATCH", "/api/v1/nodes/n1", NOT_READY, MERGE)
    client = KubeClient(made, "n2", config, clock)
    for _ in range(20):
        clock.now += 61
        drive(client, fatal(), config)
        assert withdrawn(made) == set()


def test_whoever_takes_a_permit_has_looked_at_the_pool_just_before() -> None:
    made, clock, config = cluster("n1", "n2"), Clock(), tainting()
    client = KubeClient(made, "n1", config, clock)
    client.look(closely=True)
    made("PATCH", "/api/v1/nodes/n2", {"metadata": {"labels": {OUT_LABEL: "true"}}}, MERGE)
    clock.now += 2.1
    made.requests.clear()
    drive(client, fatal(), config, rounds=2)  # what it knows is old: first it reads anew
    assert withdrawn(made) == set()
    assert made.requests.count(("GET", "/api/v1/nodes")) == 2


def strip(made: InMemoryCluster, name: str) -> None:
    del made._objects["leases", "gpu-health-agent", name]["metadata"]["labels"]


@pytest.mark.parametrize("held", [True, False])
def test_a_permit_whose_labels_somebody_took_off_is_named_and_counts_as_held(held: bool) -> None:
    made, config, name = cluster("n1", "n2", "n3"), tainting(), "gpu-health-agent-withdrawn-gpu-0"
    drive(KubeClient(made, "n1", config), fatal(), config)
    if not held:
        drive(KubeClient(made, "n1", config), healthy(), config)
    strip(made, name)
    client = KubeClient(made, "n2", config)
    drive(client, fatal(), config)
    assert withdrawn(made) == ({"n1"} if held else set())
    made.requests.clear()
    drive(client, fatal(), config)
    assert ("POST", LEASES) not in made.requests, "it is not asked for again and again"
    steps = plan(fatal(), client.look(closely=True), config, Local()).steps
    words = [step.why for step in steps if isinstance(step, Wait)]
    if held:  # the node behind it is counted by its own label
        assert words[0].endswith("out of service otherwise: n1")
        return
    assert words[1] == f"Lease {name} lacks its labels and counts as held: a person must delete it"
    del made._objects["leases", "gpu-health-agent", name]
    drive(client, fatal(), config)
    assert withdrawn(made) == {"n2"}


def test_a_healthy_node_that_a_permit_without_labels_names_is_looked_at_as_seldom_as_others() -> None:
    made, config = cluster("n1", "n2", "n3"), tainting()
    client = KubeClient(made, "n1", config)
    drive(client, fatal(), config)
    strip(made, "gpu-health-agent-withdrawn-gpu-0")
    drive(client, fatal(), config)
    cycle = Cycle(config, 0.0)
    for verdict in (fatal(), *[healthy()] * 6):
        cycle = turn(cycle, Judged(verdict), client, lambda _: None).cycle
    assert client.look(closely=True).permits, "it is listed since it was found taken"
    assert withdrawn(made) == set()
    assert not cycle.standing


def test_of_two_permits_the_one_without_labels_keeps_nobody_from_the_other() -> None:
    made, config = cluster("n1", "n2", "n3"), tainting(2)
    drive(KubeClient(made, "n1", config), fatal(), config)
    drive(KubeClient(made, "n1", config), healthy(), config)
    strip(made, "gpu-health-agent-withdrawn-gpu-0")
    drive(KubeClient(made, "n2", config), fatal(), config)
    drive(KubeClient(made, "n3", config), fatal(), config)
    assert withdrawn(made) == {"n2"}


def test_one_answer_that_a_holders_node_is_not_there_frees_no_permit() -> None:
    made, clock, config, once = cluster("n1", "n2"), Clock(), tainting(), [True]
    drive(KubeClient(made, "n1", config), fatal(), config)

    def forgetful(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        if path == "/api/v1/nodes/n1" and once:
            once.pop()
            return 404, {"message": 'nodes "n1" not found'}
        return made(method, path, *rest, **more)

    client = KubeClient(forgetful, "n2", config, clock)
    for _ in range(60):
        drive(client, fatal(), config, rounds=1)
        assert not any(permit.abandoned for permit in client.look(closely=True).permits or ())
        clock.now += 31
    assert (once, withdrawn(made), holders(made)) == ([], {"n1"}, {"gpu-health-agent-withdrawn-gpu-0": "n1"})


@pytest.mark.parametrize(("ahead_s", "wall_s"), [(660, 0), (10_800, 0), (0, 10_800), (0, 600)])
def test_no_server_whose_clock_is_ahead_nor_our_own_clock_ends_the_hour_of_a_permit(ahead_s: int, wall_s: int) -> None:
    made, config = cluster("n1", "n2", "n3"), tainting(3, per_hour=1)
    drive(KubeClient(made, "n1", config), fatal(), config)
    drive(KubeClient(made, "n1", config), healthy(), config)
    used = made._objects["leases", "gpu-health-agent", "gpu-health-agent-hourly-gpu-0"]
    used["metadata"]["managedFields"] = [{"manager": "gpu-health-agent", "time": rfc3339(START)}]
    for later_s, served in ((3500, False), (3700, True)):
        told = rfc3339(START + later_s + ahead_s)
        made._objects["nodes", "", "n2"]["metadata"]["managedFields"] = [{"manager": "kubelet", "time": told}]
        wall = itertools.repeat(START + later_s + wall_s).__next__
        drive(KubeClient(made, "n2", config, Clock(), wall=wall), fatal(), config)
        assert (withdrawn(made) == {"n2"}) is served, later_s


def test_a_node_object_made_anew_has_the_permits_of_the_one_before_it() -> None:
    made, clock, config = cluster("n1", "n2"), Clock(), tainting()
    one, two = (KubeClient(made, name, config, clock) for name in ("n1", "n2"))
    drive(one, fatal(), config)
    del made._objects["nodes", "", "n1"]
    made.add_node("n1")
    for _ in range(10):
        drive(two, fatal(), config)
        drive(one, fatal(), config)
        assert withdrawn(made) == {"n1"}, "and it counts once"
        clock.now += 125
    (lease,) = made("GET", LEASES)[1]["items"]
    assert lease["spec"]["holderIdentity"] == f"n1/{node(made)['metadata']['uid']}"
    drive(one, healthy(), config)
    drive(two, fatal(), config)
    assert withdrawn(made) == {"n2"}


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**9), st.integers(4, 12), st.integers(1, 4))
def test_permits_that_a_person_deletes_take_no_node_past_the_budget(seed: int, size: int, limit: int) -> None:
    """Whatever the others do just then; only what is on its way at that very moment can't be known."""
    chance = random.Random(seed)
    fleet = Fleet(size, Config(mode=Mode.EVICT, recurrence=AT_ONCE, budget=Budget(max_withdrawn=limit)), chance)
    bad, well, cured = fatal(), healthy(), set[int]()
    for _ in range(size * 40):
        i = chance.randrange(size)
        fleet.turn(i, well if i in cured else bad)
        if chance.random() < 0.02:
            (cured.discard if i in cured else cured.add)(i)
        if chance.random() < 0.02:
            without_leases(fleet.cluster)
            fleet.late.clear()
            fleet.cached.clear()
            fleet.plans = [[] for _ in fleet.plans]
            fleet.clock.now += 2.1  # so long a reading of the pool serves
        fleet.clock.now += chance.choice((0.1, 1.0, 30.0))
        assert len(fleet.withdrawn()) <= limit


def test_an_hourly_permit_of_a_dead_node_that_bears_our_taint_is_free_after_its_hour() -> None:
    made, clock, config = cluster("n1", "n2", "n3"), Clock(), tainting(3, per_hour=1)
    drive(KubeClient(made, "n1", config), fatal(), config, cuts=[3], rounds=1)  # both permits and the taint
    assert {*holders(made).values()} == {"n1"}
    client = KubeClient(made, "n2", config, clock)
    for _ in range(66):
        drive(client, fatal(), config)
        assert withdrawn(made) == {"n1"}
        clock.now += 59
    clock.now += 120
    drive(client, fatal(), config)
    assert withdrawn(made) == {"n1", "n2"}
