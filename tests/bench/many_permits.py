"""What the permits themselves cost an API server: a tenth of ten thousand nodes hold a thousand of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from statistics import median

from agent.actions.api import TABLE, ask, connect
from agent.actions.permits import Permits
from agent.config.settings import Budget
from agent.model.names import FREE_LABEL, POOL_LABEL
from agent.model.world import PermitKind
from tests.bench.api_cost import cost, over, stored
from tests.cluster.control_plane import ControlPlane

BUDGET = Budget(pool_selector="site=many")
POOL, KIND, OWN = BUDGET.pool, PermitKind.WITHDRAWN, "fleet-0/0"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/gpu-health-agent/leases"
TIMES, IDLE_S = 50, 20.0


def many_permits(plane: ControlPlane, account: str, numbers: Iterable[int] = (10, 100, 1000)) -> None:
    """With so many held, by the agent's own code and with the rights of this account."""
    api, held, idle_s = connect(account), 0, over(plane, IDLE_S).cpu_s / IDLE_S
    permits = Permits(api, BUDGET, time.monotonic, time.time)
    one = f"{LEASES}?fieldSelector=metadata.name%3Dgpu-health-agent-{KIND}-{POOL}-0"
    table = f"{LEASES}?labelSelector={POOL_LABEL}%3D{POOL}&includeObject=None"
    free = f"{LEASES}?labelSelector={POOL_LABEL}%3D{POOL}%2C{FREE_LABEL}%3Dtrue&resourceVersion=0"

    def tell(what: str, does: Sequence[Callable[[], object]]) -> None:
        before, took = cost(plane), list[float]()
        for each in does:
            began = time.monotonic()
            each()
            took.append(time.monotonic() - began)
        spent = cost(plane).since(before)
        cpu_ms = 1000 * (spent.cpu_s - idle_s * spent.at) / len(does)
        size = sum(spent.size.values()) / len(does) / 1000
        print(
            f"  {what:<18} {1000 * median(took):6.1f} ms, {cpu_ms:6.1f} of API-server CPU, {size:6.1f} kB", flush=True
        )

    def read() -> None:
        """All of them, as whoever takes one does."""
        permits.renew()
        permits.pool(OWN, permits.look(OWN))

    for number in numbers:
        print(f"{number} permits are held:")
        read()
        takes = [partial(permits.take, KIND, index, f"fleet-0/{index}") for index in range(held, number)]
        for take in takes[TIMES:]:
            take()
        tell("take one anew", takes[:TIMES])
        tell("list all", [read] * TIMES)
        tell("table of all", [partial(ask, api, "GET", table, accept=TABLE)] * TIMES)
        tell("confirm one", [partial(permits.take, KIND, 0, OWN)] * TIMES)
        tell("look at one", [partial(ask, api, "GET", one)] * TIMES)
        tell("ask which are free", [partial(ask, api, "GET", free)] * TIMES)
        sizes = [size for key, size in stored(plane, "/registry/leases/").items() if f"-{POOL}-" in key]
        print(f"  in etcd: {sum(sizes) / 1e6:.2f} MB, {sum(sizes) / len(sizes) / 1000:.2f} kB each", flush=True)
        held = number
