"""``make bench-fleet``: a false fault on a pool in the same second, most of which then waits for permits.

Real act loops run on some of the nodes, healthy at first. The others are objects in the API server, and hold all
permits but two, so that almost every loop waits. What one costs is counted, and said of ten thousand as well.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from heapq import heapify, heapreplace
from http.client import HTTPException
from pathlib import Path

from agent.actions.api import METADATA, connect
from agent.actions.kube import KubeClient
from agent.actions.lease import rewritten
from agent.config.settings import Budget, Config, Mode
from agent.model.errors import UnreachableError
from agent.model.names import PERMIT_KIND_LABEL, POOL_LABEL, POOL_SIZE_ANNOTATION, SLOT_LEASE, WITHDRAWN_LABEL
from agent.model.text import rfc3339
from agent.model.world import PermitKind
from agent.runtime.actor import Actor
from agent.runtime.exchange import Judged
from tests.actions.test_kube import fatal, healthy
from tests.bench.api_cost import Cost, cost, over, stored
from tests.bench.furniture import add
from tests.bench.many_permits import many_permits
from tests.bench.waiting_row import FLEET, Each, Row, tell
from tests.cluster.build import assets
from tests.cluster.control_plane import ControlPlane

MANIFESTS = Path(__file__).parents[2] / "daemonset"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/gpu-health-agent/leases"
MERGE = "application/merge-patch+json"
BUDGET = Budget(pool_selector="site=fleet")
PLAYERS = "kwok", "kube-controller-manager", "kube-scheduler"  # what they do is not the agents'
LEFT = 2  # permits that are free when the fault comes
IDLE_S, START_S, FIRST_S = 60.0, 15.0, 10.0
HEALTHY_S = 320.0  # by then each looked for what an earlier life may have asked for
KUBELET_S = 300.0  # how often a kubelet writes a status in which nothing but the time is new
CONFIRM_S = 120.0  # how often a holder confirms its permit
SERVED_S = 900.0  # the longest that is waited for a permit to be taken


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.waiting_fleet")
    parser.add_argument("--nodes", type=int, nargs="+", default=[100, 1000, 5000])
    parser.add_argument("--agents", type=int, default=200, help="how many of them run a real act loop")
    parser.add_argument("--waits-s", type=float, default=600, help="for how long their waiting is measured")
    arguments = parser.parse_args()
    rows = []
    for size in arguments.nodes:
        with installed() as plane:
            rows.append(waiting_fleet(plane, size, arguments.agents, arguments.waits_s))
            tell(rows[-1:])
    with installed() as plane:
        add(plane, "fleet-0", {})
        account = str(plane.agent_kubeconfig("fleet-0"))
        for name in PLAYERS:
            plane.end(name)
        many_permits(plane, account)
    tell(rows)
    return 0


@contextmanager
def installed() -> Iterator[ControlPlane]:
    """A control plane without nodes, with the manifests applied."""
    with tempfile.TemporaryDirectory(prefix="gpu-health-agent-bench-") as name:
        plane = ControlPlane(Path(name) / "plane", assets())
        plane.up(nodes=0)
        try:
            plane.install(MANIFESTS)
            yield plane
        finally:
            plane.down()


def waiting_fleet(plane: ControlPlane, size: int, agents: int, waits_s: float) -> Row:
    nodes = [f"fleet-{i}" for i in range(size)]
    agents = min(agents, size - size // 10 + LEFT)
    real, others = nodes[:agents], nodes[agents:]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: add(plane, name, {}), real))
        # While the DaemonSet's controller and the scheduler still run.
        accounts = dict(zip(real, pool.map(lambda name: str(plane.agent_kubeconfig(name)), real), strict=True))
        for name in PLAYERS:
            plane.end(name)
        held = size // 10 - LEFT
        out = {WITHDRAWN_LABEL: "true"}
        list(pool.map(lambda one: add(plane, one[1], out if one[0] < held else {}), enumerate(others)))
        permits = list(pool.map(lambda i: _hold(plane, i, others[i], size), range(held)))
    config = Config(mode=Mode.TAINT, budget=BUDGET)
    actors = [Actor(config, partial(_client, accounts[n], n, config), False, lambda *_, **__: None) for n in real]
    print(f"{size} Nodes, {agents} act loops, a false fault on all at once, {size // 10} allowed:")
    meanwhile, out_now = Others(plane, real, permits), Withdrawn(plane)
    meanwhile.start()
    out_now.start()
    time.sleep(3)
    idle = over(plane, IDLE_S)
    well, bad = healthy(), fatal()
    began = cost(plane)
    for actor in actors:
        actor.exchange.judged = Judged(well)
        actor.start()
    time.sleep(START_S)
    _print("a start of the agent", cost(plane).since(began), idle, agents, 1.0)
    _print("healthy, an agent and minute", over(plane, HEALTHY_S), idle, agents, HEALTHY_S / 60)
    bytes_before, before = _stored(plane, real), cost(plane)
    for actor in actors:
        actor.exchange.judged = Judged(bad)
        actor.exchange.news.set()
    time.sleep(FIRST_S)
    first = _print("first 10 s, an agent", cost(plane).since(before), idle, agents, 1.0)
    time.sleep(size / 30 + FIRST_S)  # by when the last of them has told its Node
    waiting = agents - len(out_now.names & set(real))
    each = _print("waiting, an agent and minute", over(plane, waits_s), idle, waiting or 1, waits_s / 60)
    etcd = _tell_stored(bytes_before, _stored(plane, real), out_now.names)
    meanwhile.given.add(permits[0])
    served_s = _one_comes_free(plane, others[0], permits[0], out_now)
    meanwhile.stop()
    for actor in actors:
        actor.stop()
    return Row(size, agents, first, each, out_now.most, size // 10, served_s, etcd)


def _print(title: str, spent: Cost, idle: Cost, agents: int, minutes: float) -> Each:
    share = 1 / agents / minutes
    print(f"  {title}: {(each := Each.of(spent, idle, share))}")
    for what, count in sorted(spent.requests.items()):
        print(f"    {what:<24}{count * share:7.2f}  {spent.size[what] * share / 1000:9.2f} kB")
    print(f"    events of watches                {each.watched / 1000:9.2f} kB", flush=True)
    return each


def _stored(plane: ControlPlane, nodes: list[str]) -> dict[str, dict[str, int]]:
    """Bytes in etcd: these Nodes, and all that agents make."""
    minions = stored(plane, "/registry/minions/")
    return {
        "Node": {name: minions[f"/registry/minions/{name}"] for name in nodes},
        "Lease": stored(plane, "/registry/leases/gpu-health-agent/"),
        "Event": stored(plane, "/registry/events/default/"),
    }


def _tell_stored(before: dict[str, dict[str, int]], after: dict[str, dict[str, int]], out: set[str]) -> float:
    grown = {name: size - before["Node"][name] for name, size in after["Node"].items()}
    events = len(after["Event"]) - len(before["Event"])
    a_lease = sum(after["Lease"].values()) / max(len(after["Lease"]), 1)
    an_event = sum(after["Event"].values()) / max(len(after["Event"]), 1)
    withdrawn, waiting = ([grown[name] for name in grown if (name in out) is so] for so in (True, False))
    each = {kind: sum(of) / max(len(of), 1) for kind, of in (("withdrawn", withdrawn), ("waiting", waiting))}
    a_node = events / len(grown)
    allowed = FLEET // 10
    whole = allowed * (each["withdrawn"] + a_lease) + (FLEET - allowed) * each["waiting"] + FLEET * a_node * an_event
    print(
        f"  in etcd: a Node of {sum(before['Node'].values()) / len(grown) / 1000:.1f} kB grows by "
        f"{each['withdrawn'] / 1000:.2f} kB if withdrawn, {each['waiting'] / 1000:.2f} kB if it waits; a permit "
        f"{a_lease / 1000:.2f} kB; {a_node:.1f} Events a node of {an_event / 1000:.2f} kB, gone after an hour; "
        f"{FLEET} sick nodes: {whole / 1e6:.0f} MB"
    )
    return whole


class Others(threading.Thread):
    """What kubelets write every five minutes of these nodes, and holders every two of these permits."""

    def __init__(self, plane: ControlPlane, nodes: list[str], permits: list[str]) -> None:
        super().__init__(daemon=True)
        self._plane, self._over, self.given = plane, threading.Event(), set[str]()
        self._due = sorted((KUBELET_S * i / len(nodes), KUBELET_S, self._status, n) for i, n in enumerate(nodes))
        self._due += [(CONFIRM_S * i / len(permits), CONFIRM_S, self._confirm, n) for i, n in enumerate(permits)]

    def run(self) -> None:
        began = time.monotonic()
        heapify(self._due)
        while not self._over.wait(max(0.0, began + self._due[0][0] - time.monotonic())):
            at, every_s, write, name = self._due[0]
            with suppress(OSError, HTTPException, RuntimeError):  # what was in vain comes again
                write(name)
            heapreplace(self._due, (at + every_s, every_s, write, name))

    def stop(self) -> None:
        self._over.set()
        self.join()

    def _status(self, name: str) -> None:
        path = f"/api/v1/nodes/{name}"
        one = self._plane.must("GET", path)
        for condition in one["status"]["conditions"]:
            if condition["type"] == "Ready":
                condition["lastHeartbeatTime"] = rfc3339(time.time(), "seconds")
        self._plane.request("PUT", f"{path}/status", one)  # one that was overtaken writes the next time

    def _confirm(self, name: str) -> None:
        if name not in self.given:
            self._plane.must("PATCH", f"{LEASES}/{name}", {"spec": {"renewTime": rfc3339(time.time())}}, MERGE)


class Withdrawn(threading.Thread):
    """Watches which nodes are out under our taint."""

    def __init__(self, plane: ControlPlane) -> None:
        super().__init__(daemon=True)
        self._api, self.names, self.most = connect(str(plane.kubeconfig), quiet_s=3600), set[str](), 0
        self.news = threading.Event()

    def run(self) -> None:
        path = f"/api/v1/nodes?watch=true&labelSelector={WITHDRAWN_LABEL}%3Dtrue"
        while True:
            try:
                for event in self._api("GET", path, accept=METADATA)[1]:
                    name = event["object"]["metadata"].get("name", "")
                    (self.names.discard if event["type"] == "DELETED" else self.names.add)(name)
                    self.most = max(self.most, len(self.names))
                    self.news.set()
            except UnreachableError:  # the control plane has ended
                return


def _one_comes_free(plane: ControlPlane, name: str, permit: str, out_now: Withdrawn) -> float:
    """Seconds until a node that waited is out in place of this one."""
    lease, before = plane.must("GET", f"{LEASES}/{permit}"), set(out_now.names)
    plane.must("PATCH", f"/api/v1/nodes/{name}", {"metadata": {"labels": {WITHDRAWN_LABEL: None}}}, MERGE)
    plane.must("PUT", f"{LEASES}/{permit}", rewritten(lease, {"holderIdentity": ""}))
    began = time.monotonic()
    while time.monotonic() - began < SERVED_S:
        if out_now.names - before:
            return time.monotonic() - began
        out_now.news.clear()
        out_now.news.wait(1)
    return float("inf")


def _hold(plane: ControlPlane, index: int, node: str, size: int) -> str:
    uid, now = plane.must("GET", f"/api/v1/nodes/{node}")["metadata"]["uid"], rfc3339(time.time())
    kind = PermitKind.WITHDRAWN
    name = SLOT_LEASE.format(kind=kind, pool=BUDGET.pool, index=index)
    body = {
        "metadata": {
            "name": name,
            "labels": {POOL_LABEL: BUDGET.pool, PERMIT_KIND_LABEL: str(kind)},
            "annotations": {POOL_SIZE_ANNOTATION: str(size)},
        },
        "spec": {"holderIdentity": f"{node}/{uid}", "acquireTime": now, "renewTime": now},
    }
    plane.must("POST", LEASES, body)
    return name


def _client(account: str, node: str, config: Config) -> KubeClient:
    return KubeClient(connect(account), node, config)


if __name__ == "__main__":
    sys.exit(main())
