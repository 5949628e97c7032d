"""A pool that is renamed: agents that go by either of its names share one budget, whatever comes between."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from agent.actions.kube import KubeClient
from agent.config.settings import Budget, Repair
from agent.model.names import HARD_TAINT, PERMIT_KIND_LABEL, POOL_LABEL
from agent.model.world import PermitKind
from agent.remediation.budget import free_permit
from agent.simulation.in_memory_cluster import InMemoryCluster
from tests.actions.test_kube import MERGE, cluster
from tests.actions.test_permits import Clock
from tests.life import CONFIG, POLL_S, Life
from tests.remediation.test_repair import RESET

LEASES = "/apis/coordination.k8s.io/v1/namespaces/gpu-health-agent/leases"
_GIVES_UP_S = 60.0


class Member(Life):
    """A node of the pool whose agent goes by this name of it."""

    def __init__(self, cluster: InMemoryCluster, name: str, pool: str) -> None:
        budget = Budget(pool=pool, max_withdrawn=1, max_draining=1)
        super().__init__(
            0, name=name, cluster=cluster, config=CONFIG.model_copy(update={"budget": budget, "repair": Repair()})
        )

    def _settles(self) -> None:
        self.cluster.add_node(self.name)
        self.cluster.add_pod("research", f"train-{self.name}", self.name, owner="Job")


class Both:
    """Two nodes that turn sick at once: the one stops before its i-th request, the other runs to its j-th one, the one
    goes on to the end of its round, and then the other does."""

    def __init__(self, used: tuple[str, ...], pools: tuple[str, str] = ("gpu", "gpus")) -> None:
        self.cluster = InMemoryCluster()
        for pool in used:
            lease(self.cluster, pool)
        self.one, self.other = (Member(self.cluster, f"n{n}", pool) for n, pool in enumerate(pools, 1))
        self.most = 0
        for member in (self.one, self.other):
            member.after = lambda _: self._counts()

    def _counts(self) -> None:
        taints = [self.cluster.read("nodes", name)["spec"].get("taints") or () for name in ("n1", "n2")]
        self.most = max(self.most, sum(any(one["key"] == HARD_TAINT for one in each) for each in taints))

    def breaks(self) -> None:
        for member in (self.one, self.other):
            member.breaks(code=RESET)

    def crossed(self, i: int, j: int) -> bool:
        """Whether both came so far in one round."""
        first, second = threading.Semaphore(0), threading.Semaphore(0)
        counts, stopped = {"n1": 0, "n2": 0}, set[str]()

        def api(name: str, at: int, goes: threading.Semaphore, waits: threading.Semaphore) -> Any:
            def ask(*asked: Any, **more: Any) -> Any:
                counts[name] += 1
                if counts[name] == at and name not in stopped:
                    stopped.add(name)
                    goes.release()
                    assert waits.acquire(timeout=_GIVES_UP_S)
                return self.cluster(*asked, **more)

            return ask

        self.one.api, self.other.api = api("n1", i, second, first), api("n2", j, first, second)

        def runs() -> None:
            assert second.acquire(timeout=_GIVES_UP_S)
            self.other.tick()
            first.release()

        thread = threading.Thread(target=runs)
        thread.start()
        self.one.tick()
        second.release()
        second.release()
        thread.join(_GIVES_UP_S)
        self.one.api = self.other.api = None
        return stopped == {"n1", "n2"}

    def runs(self, seconds: float) -> None:
        for _ in range(int(seconds / POLL_S)):
            self.one.tick()
            self.other.tick()


def lease(made: InMemoryCluster, pool: str, holder: str = "", index: int = 0) -> None:
    labels = {POOL_LABEL: pool, PERMIT_KIND_LABEL: "withdrawn"}
    metadata = {"name": f"gpu-health-agent-withdrawn-{pool}-{index}", "labels": labels}
    made("POST", LEASES, {"metadata": metadata, "spec": {"holderIdentity": holder}})


USED = [(), ("gpu",), ("gpu", "gpus")]
named = pytest.mark.parametrize("used", USED, ids=lambda used: "+".join(used) or "none")


@named
@pytest.mark.parametrize("i", range(1, 10))
def test_agents_of_two_names_never_give_the_last_place_away_twice(used: tuple[str, ...], i: int) -> None:
    """Wherever the one is stopped and the other runs in between."""
    for j in range(1, 14):
        both = Both(used)
        if used[1:]:
            for member in (both.one, both.other):
                member.now += 310
        both.breaks()
        met = both.crossed(i, j)
        both.runs(30)
        assert both.most <= 1, f"both are withdrawn: n1 stopped at its request {i}, n2 at {j}"
        if not met:
            break
    assert j > 3, "they cross"


@named
def test_beside_another_name_of_the_pool_a_place_is_given_after_five_minutes_at_the_latest(
    used: tuple[str, ...],
) -> None:
    both = Both(used)
    both.other.breaks(code=RESET)
    both.runs(330)
    assert both.most == 1
    both.one.breaks(code=RESET)
    both.runs(400)
    assert both.most == 1
    assert any("out of service otherwise: n2" in why or "by n2" in why for why in both.one.waits), both.one.waits


def test_a_permit_under_another_name_counts_while_a_node_of_this_pool_confirms_it() -> None:
    """Of a node of another pool it counts for nothing, nor does one that nobody confirmed for ten minutes."""
    made, clock = cluster("n1", "n2", "n3"), Clock()
    made("PATCH", "/api/v1/nodes/n3", {"metadata": {"labels": {"nvidia.com/gpu.present": None}}}, MERGE)
    lease(made, "gpu")
    client = KubeClient(made, "n1", CONFIG, clock)

    def free() -> int | None:
        client.renew()
        return free_permit(client.look(closely=True), PermitKind.WITHDRAWN, CONFIG.budget)

    free()
    clock.now += 301
    lease(made, "gpus", "n3/uid-3")
    assert free() == 0
    lease(made, "gpus", "n2/uid-2", index=1)
    assert free() is None
    clock.now += 599
    assert free() is None
    clock.now += 1
    assert free() == 0


def test_what_a_node_holds_under_the_old_name_goes_back() -> None:
    """Only once nothing can go on any more that was asked for under it."""
    both = Both(("gpu",))
    both.one.breaks(code=RESET)
    both.runs(60)
    assert both.one.tainted()
    budget = both.one.config.budget.model_copy(update={"pool": "gpus"})
    both.one.config = both.one.config.model_copy(update={"budget": budget})
    both.one.reboots()
    old = both.cluster.read("leases", "gpu-health-agent-withdrawn-gpu-0", "gpu-health-agent")
    began = both.one.now
    while old["spec"]["holderIdentity"]:
        both.one.tick()
        old = both.cluster.read("leases", "gpu-health-agent-withdrawn-gpu-0", "gpu-health-agent")
    assert 960 <= both.one.now - began <= 1100
    assert not both.one.tainted()
