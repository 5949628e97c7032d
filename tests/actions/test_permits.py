"""Permits: never more than the budget, whoever dies, lags or asks at once; and no slot is lost for ever."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agent.actions.kube import KubeClient
from agent.config.settings import Budget, Config, Mode, Recurrence
from agent.model.errors import RefusedError, UnreachableError
from agent.model.names import HARD_TAINT, OUT_LABEL
from agent.model.steps import Evict, Retaint, Step, TakePermit, Wait
from agent.model.text import rfc3339
from agent.model.world import Local, Permit, PermitKind, World
from agent.remediation.budget import free_permit
from agent.remediation.plan import plan
from agent.simulation.in_memory_cluster import InMemoryCluster
from tests.actions.test_kube import EVICT, MERGE, cluster, drive, fatal, healthy, holders, node, taints
from tests.observe import START

AT_ONCE = Recurrence(enabled=False)  # a cured node is not held: here others wait for its permit

REFUSED = {"message": "Cannot evict pod", "details": {"causes": [{"reason": "DisruptionBudget", "message": "budget"}]}}


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def waits(client: KubeClient, config: Config = EVICT) -> list[str]:
    return [s.why for s in plan(fatal(), client.look(closely=True), config, Local()).steps if isinstance(s, Wait)]


def bare(made: InMemoryCluster, name: str) -> None:
    """Its taints are gone, as when a person removed them."""
    made("PATCH", f"/api/v1/nodes/{name}", {"spec": {"taints": None}}, MERGE)


def test_a_slot_whose_node_is_gone_is_taken_over() -> None:
    made, clock = cluster(), Clock()
    drive(KubeClient(made, "n1", EVICT), fatal())
    client = KubeClient(made, "n2", EVICT, clock)
    del made._objects["nodes", "", "n1"]
    drive(client, fatal(), rounds=1)
    assert taints(made, "n2") == [], "its holder has just confirmed it"
    clock.now += 301
    drive(client, fatal())
    assert taints(made, "n2") == [], "one answer that there is no such Node may be a mistake"
    clock.now += 61
    drive(client, fatal())
    assert holders(made)["gpu-health-agent-withdrawn-gpu-0"] == "n2"


def test_a_node_made_anew_under_the_same_name_is_another_node() -> None:
    made, clock = cluster(), Clock()
    drive(KubeClient(made, "n1", EVICT), fatal())
    made.add_node("n1")
    client = KubeClient(made, "n2", EVICT, clock)
    for passed_s in (0, 301, 61):
        clock.now += passed_s
        drive(client, fatal())
    assert holders(made)["gpu-health-agent-withdrawn-gpu-0"] == "n2"


def test_a_silent_holder_that_bears_our_taint_keeps_its_slot_for_ever() -> None:
    made, clock = cluster(), Clock()
    drive(KubeClient(made, "n1", EVICT), fatal())
    client = KubeClient(made, "n2", EVICT, clock)
    for _ in range(100):
        clock.now += 600
        drive(client, fatal(), rounds=1)
        assert not any(permit.abandoned for permit in client.look(closely=True).permits or ())
    assert (taints(made, "n2"), holders(made)["gpu-health-agent-withdrawn-gpu-0"]) == ([], "n1")


def test_a_silent_holder_without_our_taint_loses_its_slot_after_ten_minutes_of_the_observers_clock() -> None:
    made, clock = cluster(), Clock()
    drive(KubeClient(made, "n1", EVICT), fatal(), rounds=1, cuts=[1])  # it took the slot and died
    client = KubeClient(made, "n2", EVICT, clock)
    for _ in range(60):
        drive(client, fatal(), rounds=1)
        assert taints(made, "n2") == []
        clock.now += 10
    clock.now += 60
    drive(client, fatal())
    assert taints(made, "n2") == ["gpu-health-agent/unhealthy"]


def test_a_holder_that_confirms_its_slot_keeps_it() -> None:
    made, clock = cluster(), Clock()
    one, two = KubeClient(made, "n1", EVICT, clock), KubeClient(made, "n2", EVICT, clock)
    drive(one, fatal())
    bare(made, "n1")
    for _ in range(20):
        clock.now += 125
        steps = plan(fatal(), one.look(closely=True), EVICT, Local()).steps
        assert isinstance(steps[0], TakePermit)
        one.do(steps[0])
        drive(two, fatal(), rounds=1)
    assert taints(made, "n2") == []


def test_nothing_is_tainted_or_evicted_on_a_permit_that_was_not_confirmed_lately() -> None:
    made, clock = cluster(), Clock()
    client = KubeClient(made, "n1", EVICT, clock)
    steps = plan(fatal(), client.look(closely=True), EVICT, Local()).steps
    client.do(steps[0])
    clock.now += 301  # it was stopped here, and goes on with what it had planned
    with pytest.raises(RefusedError, match="confirmed lately"):
        client.do(next(step for step in steps if isinstance(step, Retaint)))
    assert taints(made) == []
    client.do(steps[0])
    drive(client, fatal(), rounds=1)
    *_, permit, eviction, _ = plan(fatal(), client.look(closely=True), EVICT, Local()).steps
    assert isinstance(eviction, Evict)
    client.do(permit)
    clock.now += 301
    with pytest.raises(RefusedError, match="confirmed lately"):
        client.do(eviction)


def test_a_permit_whose_return_was_asked_for_is_none_until_it_is_confirmed_anew() -> None:
    """The answer is lost, the fault comes again, and then the request arrives after all."""
    made, late = cluster(), list[Callable[[], Any]]()

    def loses_the_return(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        if "leases/gpu-health-agent-withdrawn" in path and not rest[0]["spec"]["holderIdentity"]:
            late.append(lambda: made(method, path, *rest, **more))
            raise UnreachableError("timed out")
        return made(method, path, *rest, **more)

    client = KubeClient(loses_the_return, "n1", EVICT)
    drive(client, fatal())
    with pytest.raises(UnreachableError):
        drive(client, healthy())
    steps = plan(fatal(), client.look(closely=True), EVICT, Local()).steps
    late[0]()
    with pytest.raises(RefusedError):
        client.do(steps[0])
    assert (taints(made), set(holders(made).values())) == ([], {""})


@pytest.mark.parametrize("answer", [None, (504, {"message": "timeout"})])
@pytest.mark.parametrize("lost", ["/api/v1/nodes/n1", "/eviction"])
def test_the_node_and_its_permit_stay_as_they_are_while_what_was_asked_for_in_vain_may_still_arrive(
    answer: tuple[int, Any] | None, lost: str
) -> None:
    made, late, clock = cluster(), list[Callable[[], Any]](), Clock()
    others = [{"key": "reserved", "effect": "NoSchedule"}]
    made("PATCH", "/api/v1/nodes/n1", {"spec": {"taints": others}}, MERGE)

    def loses_one(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        if method != "GET" and path.endswith(lost) and not late:
            late.append(lambda: made(method, path, *rest, **more))
            if answer:
                return answer
            raise UnreachableError("timed out")
        return made(method, path, *rest, **more)

    client = KubeClient(loses_one, "n1", EVICT, clock)
    with pytest.raises((UnreachableError, RefusedError)):
        drive(client, fatal())
    drive(client, healthy())
    assert holders(made)["gpu-health-agent-withdrawn-gpu-0"] == "n1"
    late[0]()
    assert taints(made) == ["reserved", "gpu-health-agent/unhealthy"], "no pod is evicted from a node in service"
    for passed_s, borne, holder in ((299, ["reserved", "gpu-health-agent/unhealthy"], "n1"), (2, ["reserved"], "")):
        clock.now += passed_s
        drive(client, healthy())
        assert (taints(made), holders(made)["gpu-health-agent-withdrawn-gpu-0"]) == (borne, holder)


@pytest.mark.parametrize("trouble", ["NotReady", "cordoned"])
def test_a_node_that_is_out_of_service_otherwise_counts_against_the_budget(trouble: str) -> None:
    made = cluster("n1", "n2", "n3")
    config = Config(mode=Mode.EVICT, recurrence=AT_ONCE, budget=Budget(max_withdrawn=1))
    change: dict[str, Any] = {"spec": {"unschedulable": True}}
    if trouble == "NotReady":
        change = {"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}}
    made("PATCH", "/api/v1/nodes/n3", change, MERGE)
    drive(KubeClient(made, "n1", config), fatal(), config)
    assert taints(made) == []
    assert waits(KubeClient(made, "n1", config), config) == [
        "the budget is spent: 0 of 1 taken (withdrawn permits, pool of 3 nodes); out of service otherwise: n3"
    ]
    two = Config(mode=Mode.EVICT, recurrence=AT_ONCE, budget=Budget(max_withdrawn=2))
    drive(KubeClient(made, "n1", two), fatal(), two)
    assert taints(made) == ["gpu-health-agent/unhealthy"]


TO_BE_DELETED = {"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}


@pytest.mark.parametrize(
    ("taint", "counts"),
    [
        (TO_BE_DELETED, True),
        ({"key": "karpenter.sh/disrupted", "effect": "NoSchedule"}, True),
        ({"key": "node.kubernetes.io/out-of-service", "value": "nodeshutdown", "effect": "NoExecute"}, True),
        ({"key": "example.com/maintenance", "effect": "NoSchedule"}, True),  # as the site's configuration says
        ({"key": "ToBeDeletedByClusterAutoscaler", "effect": "PreferNoSchedule"}, False),
        ({"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}, False),  # the pool's own
        ({"key": "example.com/team", "effect": "NoSchedule"}, False),
        ({"key": "gpu-health-agent/degraded", "effect": "NoSchedule"}, False),  # ours: it holds a permit
    ],
)
def test_a_node_that_others_took_out_by_a_taint_counts_for_as_long_as_it_bears_it(
    taint: dict[str, str], counts: bool
) -> None:
    made = cluster("n1", "n2", "n3")
    config = Config(
        mode=Mode.EVICT, recurrence=AT_ONCE, budget=Budget(max_withdrawn=1, others_taints=("example.com/maintenance",))
    )
    made("PATCH", "/api/v1/nodes/n3", {"spec": {"taints": [taint]}}, MERGE)
    theirs = KubeClient(made, "n3", config)
    theirs.do(plan(healthy(), theirs.look(closely=False), config, Local()).steps[0])  # its report
    assert (node(made, "n3")["metadata"]["labels"].get(OUT_LABEL) == "true") is counts
    client = KubeClient(made, "n1", config, clock := Clock())
    drive(client, fatal(), config)
    assert (taints(made) == []) is counts
    bare(made, "n3")
    drive(theirs, healthy(), config)
    assert OUT_LABEL not in node(made, "n3")["metadata"]["labels"]
    clock.now += 16
    drive(client, fatal(), config)
    assert taints(made) == ["gpu-health-agent/unhealthy"]


@pytest.mark.parametrize("held", [{3, 4}, {0, 4}, {4}])
def test_what_others_hold_and_what_is_out_of_service_count_together(held: set[int]) -> None:
    """Whatever the numbers of the slots that are held: a budget of five, three of it NotReady nodes'."""
    permits = tuple(Permit(PermitKind.WITHDRAWN, index, "other/uid" if index in held else "") for index in range(5))
    world = World("n1", "uid-1", permits=permits, pool_size=50, out=frozenset({"a", "b", "c"}))
    free = free_permit(world, PermitKind.WITHDRAWN, Budget(max_withdrawn=5))
    assert (free is None) is (len(held) >= 2)


def test_a_draining_slot_whose_node_is_gone_is_taken_over_by_one_that_is_withdrawn_already() -> None:
    made, clock = cluster(), Clock()
    config = Config(mode=Mode.EVICT, recurrence=AT_ONCE, budget=Budget(max_withdrawn=2))
    made.add_pod("research", "notebook", "n1", owner="")
    protected = KubeClient(
        lambda *a, **k: (429, REFUSED) if a[1].endswith("/eviction") else made(*a, **k), "n1", config
    )
    drive(protected, fatal(), config)
    made.add_pod("research", "other", "n2")
    client = KubeClient(made, "n2", config, clock)
    drive(client, fatal(), config)
    assert "other" in made.pods_on("n2")
    del made._objects["nodes", "", "n1"]
    for passed_s in (301, 61):
        clock.now += passed_s
        drive(client, fatal(), config)
    assert "other" not in made.pods_on("n2")


def test_so_many_an_hour_and_no_more() -> None:
    made, clock = cluster("n1", "n2", "n3"), Clock()
    config = Config(mode=Mode.EVICT, recurrence=AT_ONCE, budget=Budget(max_withdrawn=3, per_hour=2))
    client = {name: KubeClient(made, name, config, clock) for name in ("n1", "n2", "n3")}
    drive(client["n1"], fatal(), config)
    drive(client["n1"], healthy(), config)
    drive(client["n2"], fatal(), config)
    drive(client["n3"], fatal(), config)
    assert [taints(made, name) for name in client] == [[], ["gpu-health-agent/unhealthy"], []]
    assert waits(client["n3"], config) == ["the budget is spent: 2 withdrawals an hour allowed"]
    clock.now += 3601  # as the observer saw it, whatever the clocks of the nodes say
    drive(client["n3"], fatal(), config)
    assert taints(made, "n3") == ["gpu-health-agent/unhealthy"]


def test_a_permit_of_the_hour_says_when_its_hour_began() -> None:
    made, wall = cluster("n1"), Clock()

    def takes_a_second(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        wall.now += 1
        return made(method, path, *rest, **more)

    config = Config(mode=Mode.EVICT, budget=Budget(per_hour=1))
    drive(KubeClient(takes_a_second, "n1", config, Clock(), wall=wall), fatal(), config)
    (lease,) = (one for (kind, _, name), one in made._objects.items() if kind == "leases" and "hourly" in name)
    assert (lease["spec"]["holderIdentity"], lease["spec"]["acquireTime"]) == ("", lease["spec"]["renewTime"])


def test_the_hour_of_a_holder_that_died_begins_when_it_can_have_withdrawn_at_the_latest() -> None:
    """It may act for five minutes after it confirmed its permit, and never came to give it back."""
    made, clock = cluster("n1", "n2"), Clock()
    config = Config(mode=Mode.EVICT, recurrence=AT_ONCE, budget=Budget(max_withdrawn=2, per_hour=1))
    drive(KubeClient(made, "n1", config), fatal(), config, cuts=[2], rounds=1)  # killed as soon as it holds both
    client = KubeClient(made, "n2", config, clock)
    drive(client, fatal(), config)
    del made._objects["nodes", "", "n1"]
    for passed_s, withdrawn in ((3590, []), (300, []), (20, ["gpu-health-agent/unhealthy"])):
        clock.now += passed_s
        drive(client, fatal(), config)
        assert taints(made, "n2") == withdrawn


@pytest.mark.parametrize("skew_s", [-86400, -7200, 0, 7200])
def test_no_nodes_clock_shortens_the_hour_of_a_permit_or_lengthens_it(skew_s: int) -> None:
    """Of whoever used it; the API server's clock counts, as its own records of the objects tell it."""
    made = cluster("n1", "n2", "n3")
    config = Config(mode=Mode.EVICT, recurrence=AT_ONCE, budget=Budget(max_withdrawn=3, per_hour=1))

    def stamped(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        status, answer = made(method, path, *rest, **more)
        if method in ("POST", "PUT") and status < 300 and "/leases" in path:
            lease = made._objects["leases", "gpu-health-agent", answer["metadata"]["name"]]
            lease["metadata"]["managedFields"] = [{"manager": "gpu-health-agent", "time": rfc3339(START)}]
        return status, answer

    drive(KubeClient(stamped, "n1", config), fatal(), config)
    drive(KubeClient(stamped, "n1", config), healthy(), config)
    used = made._objects["leases", "gpu-health-agent", "gpu-health-agent-hourly-gpu-0"]["spec"]
    told = datetime.now(UTC) + timedelta(seconds=skew_s)
    used["acquireTime"] = used["renewTime"] = told.isoformat(timespec="microseconds").replace("+00:00", "Z")
    for later_s, served in ((10, False), (3500, False), (3700, True)):
        at = rfc3339(START + later_s)
        made._objects["nodes", "", "n2"]["metadata"]["managedFields"] = [{"manager": "kubelet", "time": at}]
        drive(KubeClient(made, "n2", config), fatal(), config)  # a new process each time: it has watched nothing
        assert (taints(made, "n2") != []) is served, later_s


def pause(made: InMemoryCluster, said: str | None) -> None:
    data = {} if said is None else {"paused": said}
    made._store("configmaps", "gpu-health-agent", {"metadata": {"name": "gpu-health-agent-pause"}, "data": data})


@pytest.mark.parametrize(
    ("said", "acts"), [("true", False), ("yes", False), ("?", False), ("false", True), ("", True), (None, True)]
)
def test_one_config_map_pauses_every_agent_of_the_cluster(said: str | None, acts: bool) -> None:
    made = cluster()
    pause(made, said)
    drive(KubeClient(made, "n1", EVICT), fatal())
    assert bool(taints(made)) is acts
    assert {c["type"]: c["status"] for c in node(made)["status"]["conditions"]}["GpuUnhealthy"] == "True"


def test_a_pause_that_can_not_be_read_is_a_pause_and_a_withdrawn_node_evicts_nobody_more() -> None:
    made = cluster()
    drive(KubeClient(made, "n1", EVICT), fatal(), rounds=1)
    assert made.evicted == []

    def forbidden(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        return (403, {"message": "no"}) if "configmaps" in path else made(method, path, *rest, **more)

    client = KubeClient(forbidden, "n1", EVICT)
    drive(client, fatal())
    assert made.evicted == []
    assert "can't be read" in waits(client)[0]


class Fleet:
    """Agents that take turns, one write each, in any order, over a server that loses, delays and repeats."""

    def __init__(self, size: int, config: Config, chance: random.Random) -> None:
        self.cluster, self.config, self.chance = InMemoryCluster(), config, chance
        self.clock = Clock()
        for i in range(size):
            self.cluster.add_node(f"n{i}")
        self.late: list[Callable[[], Any]] = []
        self.client = [KubeClient(self._unsteady, f"n{i}", config, self.clock) for i in range(size)]
        self.plans: list[list[Step]] = [[] for _ in range(size)]
        self.cached: dict[str, tuple[float, tuple[int, Any]]] = {}
        self.tainted: set[str] = set()  # nodes that bear a taint, after every single request

    def _asked(self, method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        if "resourceVersion=0" in path and path in self.cached and self.clock.now - self.cached[path][0] < 5:
            return self.cached[path][1]  # any answer that it once had will do
        answer = self.cluster(method, path, *rest, **more)
        if "resourceVersion=0" in path:
            self.cached[path] = self.clock.now, answer
        if method == "PATCH" and path.startswith("/api/v1/nodes/") and answer[0] == 200:
            name, borne = answer[1]["metadata"]["name"], _out(answer[1])
            (self.tainted.add if borne else self.tainted.discard)(name)
        return answer

    def _unsteady(self, method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        luck = self.chance.random()
        if luck < 0.05:  # it never arrived
            raise UnreachableError("timed out")
        if luck < 0.10 and method != "GET":  # it arrives after all, a while later
            self.late.append(lambda: self._asked(method, path, *rest, **more))
            raise UnreachableError("timed out")
        answer = self._asked(method, path, *rest, **more)
        if luck > 0.95:  # done, and the answer got lost
            raise UnreachableError("timed out")
        return answer

    def turn(self, i: int, verdict: Any) -> None:
        try:
            if not self.plans[i]:
                steps = plan(verdict, self.client[i].look(closely=True), self.config, Local()).steps
                self.plans[i] = [step for step in steps if not isinstance(step, Wait)]
            elif self.plans[i]:
                self.client[i].do(self.plans[i].pop(0))
        except (RefusedError, UnreachableError):
            self.plans[i] = []
        if self.late and self.chance.random() < 0.5:
            self.late.pop(self.chance.randrange(len(self.late)))()

    def withdrawn(self) -> list[int]:
        nodes = [self.cluster._objects.get(("nodes", "", f"n{i}")) for i in range(len(self.client))]
        return [i for i, raw in enumerate(nodes) if raw and _out(raw)]


def _out(node: dict[str, Any]) -> bool:
    """Whether it bears the hard taint: one that broke before may bear the soft one in service."""
    return any(taint["key"] == HARD_TAINT for taint in node["spec"].get("taints") or ())


@settings(max_examples=25, deadline=None)
# A return that arrives late; a taint that does; and two holders that died with their hour.
@example(161, 2, 1, 0, 0)
@example(344187103, 4, 1, 0, 0)
@example(404756066, 12, 2, 1, 1)
@example(71558189, 12, 5, 1, 2)
@given(st.integers(0, 10**9), st.integers(2, 12), st.integers(1, 5), st.integers(0, 3), st.integers(0, 2))
def test_a_false_fault_everywhere_at_once_never_takes_more_than_the_budget(
    seed: int, size: int, limit: int, out: int, per_hour: int
) -> None:
    """Nodes out of service otherwise, agents that die, whole nodes that go, GPUs that recover, and late requests."""
    chance = random.Random(seed)
    budget = Budget(max_withdrawn=limit, per_hour=per_hour)
    fleet = Fleet(size, Config(mode=Mode.EVICT, recurrence=AT_ONCE, budget=budget), chance)
    for i in range(out):
        fleet.cluster.add_node(f"out{i}")
        fleet.cluster("PATCH", f"/api/v1/nodes/out{i}", {"spec": {"unschedulable": True}}, MERGE)
    bad, well, dead, cured = fatal(), healthy(), set[int](), set[int]()
    withdrawn, times = set[int](), list[float]()
    for _ in range(size * 40):
        i = chance.randrange(size)
        if i not in dead:
            fleet.turn(i, well if i in cured else bad)
        if chance.random() < 0.005:
            dead.add(i)
        if chance.random() < 0.02:
            (cured.discard if i in cured else cured.add)(i)
        if i in dead and chance.random() < 0.1:
            fleet.cluster._objects.pop(("nodes", "", f"n{i}"), None)
        fleet.clock.now += chance.choice((0.1, 1.0, 30.0))
        now = set(fleet.withdrawn())
        times += [fleet.clock.now for _ in now - withdrawn]
        withdrawn = now
        assert len(withdrawn) <= max(0, limit - out)
        assert not per_hour or sum(fleet.clock.now - at < 3600 for at in times) <= per_hour


def test_a_thousand_agents_that_judge_a_false_fault_in_the_same_second_never_take_more_than_the_budget() -> None:
    """All of them plan before any of them writes; then one write each, in any order, lost, late or by a dead holder."""
    size, limit, out, chance = 1000, 20, 3, random.Random(1)
    fleet = Fleet(size, Config(mode=Mode.TAINT, recurrence=AT_ONCE, budget=Budget(max_withdrawn=limit)), chance)
    for i in range(out):
        fleet.cluster("PATCH", f"/api/v1/nodes/n{i}", {"spec": {"unschedulable": True}}, MERGE)
    bad, well, most = fatal(), healthy(), 0
    live, cured = list(range(out, size)), set[int]()
    chance.shuffle(live)
    for i in live:
        fleet.turn(i, bad)
    for turn in range(7000):
        i = live[chance.randrange(len(live))]
        fleet.turn(i, well if i in cured else bad)
        if chance.random() < 0.005:
            live.remove(i)
        if turn > 6000 and (held := fleet.tainted - {f"n{i}" for i in cured}) and chance.random() < 0.05:
            cured.add(int(min(held)[1:]))
        fleet.clock.now += 0.001
        most = max(most, len(fleet.tainted))
        assert len(fleet.tainted) <= limit - out
    assert most > limit // 2, "and the budget is used, but for what dead holders keep"


def test_of_twenty_that_ask_at_once_everyone_is_served_in_the_end() -> None:
    chance = random.Random(7)
    fleet = Fleet(20, Config(mode=Mode.EVICT, recurrence=AT_ONCE, budget=Budget(max_withdrawn=3)), chance)
    bad, well, served = fatal(), healthy(), set[int]()
    cured: dict[int, int] = {}
    for turns in range(60_000):
        i = chance.randrange(20)
        fleet.turn(i, well if i in served else bad)
        withdrawn = fleet.withdrawn() if turns % 25 == 0 else []
        assert len(withdrawn) <= 3
        for one in withdrawn:
            cured.setdefault(one, turns)
            if turns - cured[one] > 100 and one not in served:
                served.add(one)
                fleet.plans[one] = []
        fleet.clock.now += 0.05
        if len(served) == 20 and not fleet.withdrawn():
            break
    assert (len(served), fleet.withdrawn()) == (20, [])
