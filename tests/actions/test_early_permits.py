"""In a large pool a permit is taken first, and the pool is read then: by those alone that got one."""

from __future__ import annotations

import random
import tracemalloc
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.actions.kube import KubeClient
from agent.config.settings import Budget, Config, Mode
from agent.model.errors import RefusedError, UnreachableError
from agent.model.names import LARGE_POOL, MANAGED_LABEL, POOL_SIZE_ANNOTATION, POOL_UNREAD
from agent.model.steps import Retaint, TakePermit
from agent.model.world import Local, Permit, PermitKind, World
from agent.remediation.budget import beyond, taken_early
from agent.remediation.plan import plan
from agent.runtime.cycle import Cycle, turn
from agent.runtime.exchange import Judged
from agent.simulation.in_memory_cluster import InMemoryCluster
from tests.actions.test_kube import MERGE, drive, fatal, healthy, holders, taints
from tests.actions.test_permits import Clock
from tests.actions.test_pool import LEASES
from tests.observe import START

CONFIG = Config(mode=Mode.TAINT, budget=Budget(max_withdrawn="10%"))
SIZE = LARGE_POOL + 20
BAD = fatal()
KIND = PermitKind.WITHDRAWN


def pool(size: int = SIZE) -> InMemoryCluster:
    made = InMemoryCluster()
    for i in range(size):
        made.add_node(f"n{i}")
    return made


def taken(client: KubeClient) -> TakePermit:
    """The first early permit that the node asks for, taken."""
    step = plan(BAD, client.look(closely=True), CONFIG, Local()).steps[0]
    assert isinstance(step, TakePermit)
    assert step.early
    client.do(step)
    return step


def test_of_a_large_pool_that_turns_sick_at_once_those_alone_that_got_a_permit_read_it() -> None:
    """Each looks before any of them writes. The others asked for their Node, the permits and the pause."""
    made, clock = pool(), Clock()
    drive(KubeClient(made, "n0", CONFIG, clock), BAD, CONFIG)  # so that permits say how large it is
    drive(KubeClient(made, "n0", CONFIG, clock), healthy(), CONFIG)
    clients = {f"n{i}": KubeClient(made, f"n{i}", CONFIG, clock) for i in range(SIZE)}
    plans = {name: plan(BAD, client.look(closely=True), CONFIG, Local()) for name, client in clients.items()}
    assert ("GET", "/api/v1/nodes") not in made.requests[-3 * SIZE :]
    for name, one in plans.items():
        for step in one.steps:
            try:
                clients[name].do(step)
            except RefusedError:
                break
    reads = made.requests.count(("GET", "/api/v1/nodes"))
    for client in clients.values():
        drive(client, BAD, CONFIG)
    out = {name for name in clients if taints(made, name)}
    assert len(out) == SIZE // 10
    assert made.requests.count(("GET", "/api/v1/nodes")) - reads <= 2 * 2 * SIZE // 10


@pytest.mark.parametrize("size", [SIZE, 999_999])
def test_a_limit_without_end_costs_no_more_than_one_of_the_pools_size(size: int) -> None:
    """As an operator writes it who wants no limit: 16 GB of numbers were made of it, just when a node had to go."""
    world = World("n1", "u", permits=(), pool_size=size, aged=True)
    tracemalloc.start()
    steps = taken_early(world, Budget(max_withdrawn=1_000_000_000), 0)
    assert steps == taken_early(world, Budget(max_withdrawn="100%"), 0)
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()


class Delayed(KubeClient):
    """Goes by a look of a moment ago: others wrote since."""

    seen: World | None = None

    def look(self, closely: bool, counts: bool = True) -> World:
        seen, self.seen = self.seen, None
        return seen or super().look(closely, counts)


def test_of_a_large_pool_that_turns_sick_at_once_few_list_the_permits_three_times() -> None:
    """None was ever taken. In each round all look before any of them writes."""
    made, clock = pool(), Clock()
    config = Config(mode=Mode.TAINT, budget=Budget(max_withdrawn="20%"))
    clients = {f"n{i}": Delayed(made, f"n{i}", config, clock) for i in range(SIZE)}
    cycles = dict.fromkeys(clients, Cycle(config, 0.0, standing=False))
    judged = Judged(replace(BAD, at=START + clock.now))
    left = {*clients}
    while left:
        for name in left:
            clients[name].seen = clients[name].look(closely=True)
        for name in sorted(left):
            one = turn(cycles[name], judged, clients[name], lambda _: None, clock, lambda: START + clock.now)
            cycles[name] = one.cycle
            left -= {name} if not one.again else set()
    out = sum(bool(taints(made, name)) for name in clients)
    assert out == SIZE // 5
    assert made.requests.count(("GET", LEASES)) <= 2 * SIZE + 2 * out


@pytest.mark.parametrize("changed", [False, True])
def test_between_an_early_permit_and_its_taint_the_node_the_permits_and_the_pool_are_read(changed: bool) -> None:
    made, clock = pool(), Clock()
    client = KubeClient(made, "n0", CONFIG, clock)
    client.look(closely=False)
    client.heard(made.read("nodes", "n0")["metadata"]["resourceVersion"])
    taken(client)
    if changed:
        made("PATCH", "/api/v1/nodes/n0", {"metadata": {"labels": {MANAGED_LABEL: "false"}}}, MERGE)
        client.heard(made.read("nodes", "n0")["metadata"]["resourceVersion"])
    made.requests.clear()
    clock.now += 0.3
    drive(client, BAD, CONFIG, rounds=1)
    reads = [path for method, path in made.requests if method == "GET"]
    assert reads == ["/api/v1/nodes/n0", LEASES, "/api/v1/nodes", "/api/v1/nodes"]
    assert (taints(made, "n0") == []) is changed


def test_whoever_loses_every_race_for_the_last_permits_has_asked_three_times_and_waits() -> None:
    made, clock = pool(), Clock()
    for i in range(SIZE // 10 - 2):
        drive(KubeClient(made, f"n{i}", CONFIG, clock), BAD, CONFIG)
    others = [KubeClient(made, f"n{i}", CONFIG, clock) for i in (50, 51)]
    late = Delayed(made, "n52", CONFIG, clock)
    late.seen = late.look(closely=True)
    for other in others:
        drive(other, BAD, CONFIG)
    made.requests.clear()
    told = Cycle(CONFIG, 0.0, standing=False)
    judged = Judged(replace(BAD, at=START + clock.now))
    last = turn(told, judged, late, lambda _: None, clock, lambda: START + clock.now)
    assert [method for method, _ in made.requests][:2] == ["POST", "POST"], "it tried both"
    assert not any(method == "GET" for method, _ in made.requests)
    assert (last.again, last.cycle.standing) == (False, False)
    assert last.queued or last.put_off_s
    assert not taints(made, "n52")
    assert any("the budget is spent" in wait.why for wait in last.waits)


def test_the_first_of_a_large_pool_asks_how_many_nodes_there_are_and_lists_them_once_it_has_a_permit() -> None:
    made = pool()
    client = KubeClient(made, "n1", CONFIG, Clock())
    world = client.look(closely=True)
    assert (world.pool_size, world.aged) == (SIZE, True)
    drive(client, BAD, CONFIG)
    assert taints(made, "n1")
    (lease,) = made("GET", LEASES)[1]["items"]
    assert lease["metadata"]["annotations"][POOL_SIZE_ANNOTATION] == str(SIZE), "by now it was read"


@pytest.mark.parametrize("word", [str(10**5), "99999"])
def test_a_permit_that_a_lie_about_the_pool_lets_a_node_take_is_given_back_unused(word: str) -> None:
    made, clock = pool(), Clock()
    for i in range(SIZE // 10):
        drive(KubeClient(made, f"n{i}", CONFIG, clock), BAD, CONFIG)
    change = {"metadata": {"annotations": {POOL_SIZE_ANNOTATION: word}}}
    made("PATCH", f"{LEASES}/gpu-health-agent-withdrawn-gpu-0", change, MERGE)
    client = KubeClient(made, "n60", CONFIG, clock)
    assert taken(client).index >= SIZE // 10
    done = drive(client, BAD, CONFIG)
    assert not any(isinstance(step, Retaint) for step in done)
    assert "n60" not in holders(made).values()


def test_nothing_is_done_on_an_early_permit_before_the_pool_is_read() -> None:
    made = pool()
    client = KubeClient(made, "n1", CONFIG, Clock())
    aimed = Retaint((), {}, "")
    taken(client)
    with pytest.raises(RefusedError, match="confirmed lately"):
        client._permits.require(KIND)
    with pytest.raises(RefusedError):
        client.do(TakePermit(KIND, 5, early=True))
    assert [name for name in holders(made).values() if name] == ["n1"]
    assert aimed.taints == ()


def test_a_life_that_ends_with_an_early_permit_leaves_its_proof_to_the_next() -> None:
    """Meanwhile so many nodes went out of service that the budget has no place for it."""
    made, clock = pool(), Clock()
    index = taken(KubeClient(made, "n1", CONFIG, clock)).index
    for i in range(50, 50 + SIZE // 10):
        made("PATCH", f"/api/v1/nodes/n{i}", {"spec": {"unschedulable": True}}, MERGE)
    lease = made.read("leases", f"gpu-health-agent-withdrawn-gpu-{index}", "gpu-health-agent")
    assert lease["metadata"]["annotations"][POOL_SIZE_ANNOTATION] == POOL_UNREAD
    drive(KubeClient(made, "n1", CONFIG, clock), BAD, CONFIG)
    assert not taints(made, "n1")
    assert "n1" not in holders(made).values()


def test_a_node_that_is_out_of_service_otherwise_counts_though_it_took_a_permit_early() -> None:
    config = Config(mode=Mode.TAINT, budget=Budget(max_withdrawn=1))
    made, clock = pool(), Clock()
    made("PATCH", "/api/v1/nodes/n0", {"spec": {"unschedulable": True}}, MERGE)
    client = KubeClient(made, "n1", config, clock)
    steps = plan(BAD, client.look(closely=True), config, Local()).steps
    other = KubeClient(made, "n0", CONFIG, clock)
    other.look(closely=True)
    other.do(TakePermit(KIND, 3, early=True))
    client.do(steps[0])
    drive(client, BAD, config)
    assert not taints(made, "n1")


@pytest.mark.parametrize("arrives", [True, False])
def test_an_early_permit_whose_answer_is_lost_is_proved_or_taken_again(arrives: bool) -> None:
    made, once = pool(), [True]

    def server(method: str, path: str, *rest: object, **more: object) -> tuple[int, object]:
        if method == "POST" and path == LEASES and once:
            once.clear()
            if arrives:
                made(method, path, *rest, **more)  # type: ignore[arg-type]
            raise UnreachableError("timed out")
        return made(method, path, *rest, **more)  # type: ignore[arg-type]

    client = KubeClient(server, "n1", CONFIG, Clock())
    with pytest.raises(UnreachableError):
        taken(client)
    drive(client, BAD, CONFIG)
    assert taints(made, "n1")
    assert [name for name in holders(made).values() if name] == ["n1"]


def test_a_fault_that_ends_before_the_pool_is_read_gives_the_early_permit_back() -> None:
    made = pool()
    client = KubeClient(made, "n1", CONFIG, Clock())
    taken(client)
    drive(client, healthy(), CONFIG)
    assert "n1" not in holders(made).values()
    assert not taints(made, "n1")


@pytest.mark.parametrize("budget", [Budget(per_hour=3), Budget(max_withdrawn="10%")])
def test_with_an_hourly_limit_or_in_a_small_pool_the_pool_is_read_before_a_permit_is_taken(budget: Budget) -> None:
    config = Config(mode=Mode.TAINT, budget=budget)
    made = pool(SIZE if budget.per_hour else LARGE_POOL - 1)
    done = drive(KubeClient(made, "n1", config, Clock()), BAD, config)
    assert taints(made, "n1")
    assert not any(step.early for step in done if isinstance(step, TakePermit))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**9), st.integers(1, 12), st.integers(0, 6))
def test_whatever_each_believed_of_the_pool_no_more_early_permits_are_proved_than_the_budget_has(
    seed: int, limit: int, others_out: int
) -> None:
    """By old views, other sizes, in any order. Some held permits from when the budget was larger; some die."""
    chance, budget = random.Random(seed), Budget(max_withdrawn=limit)
    lies = Budget(max_withdrawn=limit + chance.randrange(8))
    permits = {i: f"old-{i}/" for i in range(16) if chance.random() < 0.2}
    proved = {*permits}  # by number: they withdraw nodes
    early: set[int] = set()
    views: dict[str, dict[int, str]] = {}
    names, out = [f"n{i}" for i in range(20)], frozenset(f"x{i}" for i in range(others_out))
    most = max(limit - others_out, len(proved))

    def world(name: str, view: dict[int, str], aged: bool) -> World:
        shown = tuple(Permit(KIND, index, who, early=index in early) for index, who in view.items())
        return World(name, "", permits=shown, pool_size=LARGE_POOL, out=frozenset() if aged else out, aged=aged)

    for _ in range(300):
        name = chance.choice(names)
        own = next((index for index, who in permits.items() if who == f"{name}/"), None)
        if own is None:
            view = views.setdefault(name, dict(permits))
            tries = taken_early(world(name, view, True), lies, 0)
            for step in tries:
                if step.index not in permits and step.index not in view:
                    permits[step.index] = f"{name}/"
                    early.add(step.index)
                    break
            if chance.random() < 0.5:
                views.pop(name)  # it looks anew the next time
        elif own in early and chance.random() < 0.7:
            early_one = beyond(world(name, dict(permits), False), budget)
            early.discard(own)
            if early_one:
                del permits[own]
            else:
                proved.add(own)
        elif own in proved and chance.random() < 0.2:  # it is well again
            proved.discard(own)
            del permits[own]
        for index in [index for index in proved if permits[index].startswith("old-") and chance.random() < 0.01]:
            proved.discard(index)
            del permits[index]
        assert len(proved) <= most
        most = max(limit - others_out, len(proved))
