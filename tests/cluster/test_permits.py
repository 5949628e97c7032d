"""Permits on a real API server: fifty agents ask in the same second."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from agent.actions.api import connect
from agent.actions.kube import KubeClient
from agent.config.settings import Budget, Config, Mode, Recurrence
from agent.model.errors import RefusedError, UnreachableError
from agent.model.names import HARD_TAINT
from agent.model.steps import Wait
from agent.model.world import Local, PermitKind, World
from agent.remediation.plan import plan
from tests.actions.test_kube import drive, fatal, healthy
from tests.cluster.control_plane import ControlPlane

_AGENTS, _LIMIT = 50, 3
_AT_ONCE = Recurrence(first_hold_s=0)  # a cured node is not held: here others wait for its permit


def test_the_hour_of_a_permit_is_the_api_servers_whatever_the_clock_of_the_node_that_used_it(
    plane: ControlPlane,
) -> None:
    for name in ("hour-0", "hour-1"):
        plane.add_node(name, labels={"site": "hour"})
    budget = Budget(max_withdrawn=2, per_hour=1, pool_selector="site=hour")
    config = Config(mode=Mode.TAINT, budget=budget, recurrence=_AT_ONCE)
    client = [KubeClient(connect(str(plane.agent_kubeconfig(name))), name, config) for name in ("hour-0", "hour-1")]
    for verdict in (fatal(), healthy()):
        drive(client[0], verdict, config)
    lease = f"/apis/coordination.k8s.io/v1/namespaces/gpu-health-agent/leases/gpu-health-agent-hourly-{budget.pool}-0"
    long_ago = {"spec": {"acquireTime": "2020-01-01T00:00:00.000000Z", "renewTime": "2020-01-01T00:00:00.000000Z"}}
    plane.must("PATCH", lease, long_ago, "application/merge-patch+json")
    drive(client[1], fatal(), config)
    world = client[1].look(closely=True)
    waits = [step.why for step in plan(fatal(), world, config, Local()).steps if isinstance(step, Wait)]
    assert waits == ["the budget is spent: 1 withdrawals an hour allowed"]
    (permit,) = (permit for permit in world.permits or () if permit.kind is PermitKind.HOURLY)
    assert permit.taken_s < 600


def anew(client: KubeClient) -> World:
    """As whoever takes a permit looks."""
    client.renew()
    return client.look(closely=True)


def test_a_withdrawn_node_whose_permits_were_deleted_counts_by_its_label_and_gets_its_permit_again(
    plane: ControlPlane,
) -> None:
    names = ["label-0", "label-1", "label-2"]
    for name in names:
        plane.add_node(name, labels={"site": "label"})
    plane.wait("nodes Ready", lambda: all(plane.ready(name) for name in names))
    config = Config(mode=Mode.TAINT, budget=Budget(max_withdrawn=1, pool_selector="site=label"))
    client = [KubeClient(connect(str(plane.agent_kubeconfig(name))), name, config) for name in names]
    drive(client[0], fatal(), config)
    name = f"gpu-health-agent-withdrawn-{config.budget.pool}-0"
    path = f"/apis/coordination.k8s.io/v1/namespaces/gpu-health-agent/leases/{name}"
    plane.must("DELETE", path)
    plane.wait("the label is seen", lambda: anew(client[1]).out == {"label-0"})
    drive(client[1], fatal(), config)
    assert not client[1].look(closely=True).withdrawn
    drive(client[0], fatal(), config)
    assert plane.must("GET", path)["spec"]["holderIdentity"].startswith("label-0/")
    assert anew(client[1]).out == frozenset(), "it counts once"
    drive(client[0], healthy(), config)
    plane.wait("the label is gone", lambda: not anew(client[1]).out)
    plane.must("PATCH", path, {"metadata": {"labels": None}}, "application/merge-patch+json")
    drive(client[1], fatal(), config)
    said = [
        step.why
        for step in plan(fatal(), client[1].look(closely=True), config, Local()).steps
        if isinstance(step, Wait)
    ]
    name = path.rpartition("/")[2]
    assert f"Lease {name} lacks its labels and counts as held: a person must delete it" in said
    plane.must("DELETE", path)
    drive(client[1], fatal(), config)
    assert client[1].look(closely=True).withdrawn
    for name in names:
        plane.request("DELETE", f"/api/v1/nodes/{name}")


def test_of_fifty_raced_agents_never_more_than_the_budget_hold_a_taint_and_everyone_is_served(
    plane: ControlPlane,
) -> None:
    nodes = [f"race-{i}" for i in range(_AGENTS)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda node: plane.add_node(node, labels={"site": "race"}), nodes))
    plane.wait("nodes Ready", lambda: all(plane.ready(node) for node in nodes))
    budget = Budget(max_withdrawn=_LIMIT, pool_selector="site=race")
    config = Config(mode=Mode.TAINT, budget=budget, recurrence=_AT_ONCE)
    accounts = {node: str(plane.agent_kubeconfig(node)) for node in nodes}
    start, done = threading.Barrier(_AGENTS + 1), threading.Event()
    bad, well = fatal(), healthy()
    most: list[int] = []

    def watch() -> None:
        while not done.is_set():
            listed = plane.must("GET", "/api/v1/nodes?labelSelector=site%3Drace")["items"]
            tainted = [n for n in listed for t in n["spec"].get("taints") or () if t["key"] == HARD_TAINT]
            most.append(len(tainted))

    def serve(node: str) -> bool:
        client = KubeClient(connect(accounts[node]), node, config)
        start.wait()
        for verdict, wanted in ((bad, True), (well, False)):
            for _ in range(2000):
                try:
                    world = client.look(closely=True)
                    steps = plan(verdict, world, config, Local()).steps
                    if any(t.key == HARD_TAINT for t in world.taints) is wanted and all(
                        isinstance(step, Wait) for step in steps
                    ):
                        break
                    for step in steps:
                        client.do(step)
                except (RefusedError, UnreachableError):
                    pass  # another was quicker: look again
                done.wait(0.05)
            else:
                return False
        return True

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with ThreadPoolExecutor(_AGENTS) as pool:
            served = pool.map(serve, nodes)
            start.wait()
            assert all(served)
    finally:
        done.set()
        watcher.join()
        for node in nodes:
            plane.request("DELETE", f"/api/v1/nodes/{node}")
    assert 0 < max(most) <= _LIMIT
