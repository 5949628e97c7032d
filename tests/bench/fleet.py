"""A false fault on a whole fleet in the same second: what is taken out, and what it costs the API server."""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from agent.actions.api import connect
from agent.actions.kube import KubeClient
from agent.config.settings import Budget, Config, Mode
from agent.model.names import HARD_TAINT
from agent.runtime.actor import Actor
from agent.runtime.exchange import Judged
from tests.actions.test_kube import fatal
from tests.cluster.control_plane import ControlPlane

WATCHED_S = 60.0


def fleet(plane: ControlPlane, size: int = 100) -> None:
    """``size`` agents on the real API server."""
    nodes = [f"fleet-{i}" for i in range(size)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda node: plane.add_node(node, labels={"site": "fleet"}), nodes))
    plane.wait("nodes Ready", lambda: all(plane.ready(node) for node in nodes), 120)
    config = Config(mode=Mode.TAINT, budget=Budget(pool_selector="site=fleet"))
    accounts = {node: str(plane.agent_kubeconfig(node)) for node in nodes}
    actors = [
        Actor(config, partial(_client, accounts[node], node, config), False, lambda *_, **__: None) for node in nodes
    ]
    done, most, bad = threading.Event(), [0], fatal()

    def watch() -> None:
        while not done.wait(0.1):
            listed = plane.must("GET", "/api/v1/nodes?labelSelector=site%3Dfleet")["items"]
            most.append(sum(t["key"] == HARD_TAINT for n in listed for t in n["spec"].get("taints") or ()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    for actor in actors:
        actor.exchange.judged = Judged(bad)
    for actor in actors:
        actor.start()
    time.sleep(10)
    before = _requests(actors)
    time.sleep(WATCHED_S)
    after = _requests(actors)
    for actor in actors:
        actor.stop()
    done.set()
    watcher.join()
    print(
        f"false fault on {size} nodes at once, {size // 10} allowed: "
        f"at most {max(most)} withdrawn, {most[-1]} in the end"
    )
    reads, writes = _reads(before) / size, (before.total() - _reads(before)) / size
    print(f"  requests per agent in the first 10 s: {reads:.1f} reads, {writes:.1f} writes")
    later = after - before
    reads, writes = _reads(later) / size, (later.total() - _reads(later)) / size
    print(f"  per agent and minute after that: {reads:.1f} reads, {writes:.1f} writes")


def _reads(requests: Counter[str]) -> int:
    return requests["GET"] + requests["WATCH"]


def _client(account: str, node: str, config: Config) -> KubeClient:
    return KubeClient(connect(account), node, config)


def _requests(actors: list[Actor]) -> Counter[str]:
    """By HTTP method, of all of them."""
    return sum((Counter(actor.exchange.acted.requests) for actor in actors), Counter())
