"""``make bench-fleet``: a false fault on a pool in the same second, most of which then waits for permits.

Real act loops run on some of the nodes. The others are objects in the API server, and hold all permits but two, so that
almost every loop waits. What one costs is counted, and said of ten thousand as well.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from agent.actions.api import METADATA, connect
from agent.actions.kube import KubeClient
from agent.config.settings import Budget, Config, Mode
from agent.model.errors import UnreachableError
from agent.model.names import (
    HARD_TAINT,
    PERMIT_KIND_LABEL,
    POOL_LABEL,
    POOL_SIZE_ANNOTATION,
    SLOT_LEASE,
    STATE_LABEL,
    WITHDRAWN_LABEL,
)
from agent.model.text import rfc3339
from agent.model.world import PermitKind
from agent.runtime.actor import Actor
from agent.runtime.exchange import Judged
from tests.actions.test_kube import fatal
from tests.bench.furniture import furniture
from tests.bench.usage import cpu_s
from tests.cluster.build import assets
from tests.cluster.control_plane import ControlPlane

MANIFESTS = Path(__file__).parents[2] / "daemonset"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/gpu-health-agent/leases"
POOL, SELECTOR = "fleet", "site=fleet"
LEFT = 2  # permits that are free when the fault comes
FIRST_S, SETTLES_S = 10.0, 20.0
SERVED_S = 600.0  # the longest that is waited for a permit to be taken
FLEET = 10_000


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.waiting_fleet")
    parser.add_argument("--nodes", type=int, nargs="+", default=[100, 1000, 5000])
    parser.add_argument("--agents", type=int, default=80, help="how many of them run a real act loop")
    parser.add_argument("--waits-s", type=float, default=300, help="for how long their waiting is measured")
    arguments = parser.parse_args()
    for size in arguments.nodes:
        with tempfile.TemporaryDirectory(prefix="gpu-health-agent-bench-") as name:
            plane = ControlPlane(Path(name) / "plane", assets())
            plane.up(nodes=0)
            try:
                plane.install(MANIFESTS)
                waiting_fleet(plane, size, min(size, arguments.agents), arguments.waits_s)
            finally:
                plane.down()
    return 0


@dataclass(frozen=True, slots=True)
class Cost:
    """What the API server did so far."""

    requests: Counter[str]  # by what was asked
    size: Counter[str]  # bytes of the answers
    cpu_s: float
    at: float

    def since(self, before: Cost) -> Cost:
        return Cost(
            self.requests - before.requests, self.size - before.size, self.cpu_s - before.cpu_s, self.at - before.at
        )


def cost(plane: ControlPlane) -> Cost:
    """By the API server's own counters."""
    text = str(plane.request("GET", "/metrics")[1])
    return Cost(
        Counter({key: int(value) for key, value in _counted(text, "apiserver_request_total")}),
        Counter({key: int(value) for key, value in _counted(text, "apiserver_response_sizes_sum")}),
        cpu_s([plane.pid("kube-apiserver")]),
        time.monotonic(),
    )


def _counted(text: str, name: str) -> Iterator[tuple[str, float]]:
    """By verb and resource, of those that the agents ask for."""
    found = Counter[str]()
    for labels, value in re.findall(rf"^{name}{{(.*?)}} (\S+)$", text, re.MULTILINE):
        said = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        if said["resource"] in ("nodes", "leases", "configmaps", "events", "pods"):
            what = f"{said['verb']} {said['resource']}" + (f"/{said['subresource']}" if said["subresource"] else "")
            found[what] += float(value)  # type: ignore[assignment]
    yield from found.items()


def waiting_fleet(plane: ControlPlane, size: int, agents: int, waits_s: float) -> None:
    nodes = [f"fleet-{i}" for i in range(size)]
    real, others = nodes[:agents], nodes[agents:]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: _add(plane, name, {}), real))
        # While the DaemonSet's controller and the scheduler still run.
        accounts = dict(zip(real, pool.map(lambda name: str(plane.agent_kubeconfig(name)), real), strict=True))
        for name in ("kwok", "kube-controller-manager", "kube-scheduler"):
            plane.end(name)  # what they do is not the agents'
        held = min(size // 10 - LEFT, len(others))
        out = {WITHDRAWN_LABEL: "true"}
        list(pool.map(lambda one: _add(plane, one[1], out if one[0] < held else {}), enumerate(others)))
        list(pool.map(lambda i: _hold(plane, i, others[i], size), range(held)))
    config = Config(mode=Mode.TAINT, budget=Budget(pool=POOL, pool_selector=SELECTOR))
    actors = [Actor(config, partial(_client, accounts[n], n, config), False, lambda *_, **__: None) for n in real]
    for actor in actors:  # they have run for long: their rights are known
        actor.exchange.acted = replace(actor.exchange.acted, lacks=())
    out_now = Withdrawn(plane)
    out_now.start()
    time.sleep(3)
    idle = _over(plane, 20)
    before, bad = cost(plane), fatal()
    for actor in actors:
        actor.exchange.judged = Judged(bad)
    for actor in actors:
        actor.start()
    time.sleep(FIRST_S)
    first = cost(plane).since(before)
    time.sleep(SETTLES_S)
    waiting = agents - len(out_now.names & set(real))
    spent = _over(plane, waits_s)
    most = out_now.most
    served_s = _one_comes_free(plane, others[0] if held else next(iter(out_now.names)), out_now)
    for actor in actors:
        actor.stop()
    print(f"{size} Nodes, {agents} act loops, a false fault on all at once, {size // 10} allowed:")
    print(f"  most withdrawn at any instant  {most}; a free permit was taken after {served_s:.0f} s")
    _print("first 10 s, an agent", first, idle, agents, 1.0)
    minutes = waits_s / 60
    _print("waiting, an agent and minute", spent, idle, waiting or 1, minutes)
    scale = FLEET * 0.9 / (waiting or 1) / minutes
    cores = (spent.cpu_s - idle.cpu_s * spent.at / idle.at) * scale / 60
    print(
        f"  if {FLEET} nodes cost as much each: {spent.requests.total() * scale / 60:.0f} requests a second, "
        f"{spent.size.total() * scale / 60 / 1e6:.1f} MB a second, {cores:.2f} cores of API server",
        flush=True,
    )


def _print(title: str, spent: Cost, idle: Cost, agents: int, minutes: float) -> None:
    share = 1 / agents / minutes
    cpu_ms = 1000 * (spent.cpu_s - idle.cpu_s * spent.at / idle.at) * share
    print(
        f"  {title}: {spent.requests.total() * share:.2f} requests, {spent.size.total() * share / 1000:.1f} kB, "
        f"{cpu_ms:.1f} ms of API-server CPU"
    )
    for what, count in sorted(spent.requests.items()):
        print(f"    {what:<24}{count * share:7.2f}  {spent.size[what] * share / 1000:9.1f} kB")


def _over(plane: ControlPlane, seconds: float) -> Cost:
    before = cost(plane)
    time.sleep(seconds)
    return cost(plane).since(before)


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


def _one_comes_free(plane: ControlPlane, name: str, out_now: Withdrawn) -> float:
    """Seconds until a node that waited is out in place of this one."""
    lease = next(one for one in plane.must("GET", LEASES)["items"] if _holds(one, name))
    merge, before = "application/merge-patch+json", set(out_now.names)
    plane.must("PATCH", f"/api/v1/nodes/{name}", {"metadata": {"labels": {WITHDRAWN_LABEL: None}}}, merge)
    plane.must("PATCH", f"{LEASES}/{lease['metadata']['name']}", {"spec": {"holderIdentity": ""}}, merge)
    began = time.monotonic()
    while time.monotonic() - began < SERVED_S:
        if out_now.names - before:
            return time.monotonic() - began
        out_now.news.clear()
        out_now.news.wait(1)
    return float("inf")


def _holds(lease: dict[str, Any], name: str) -> bool:
    kind = (lease["metadata"].get("labels") or {}).get(PERMIT_KIND_LABEL)
    return kind == PermitKind.WITHDRAWN and (lease["spec"].get("holderIdentity") or "").startswith(f"{name}/")


def _add(plane: ControlPlane, name: str, labels: dict[str, str]) -> None:
    """A Node of 24 kB that is Ready; nobody plays it."""
    images, furnished = furniture()
    own = {"kubernetes.io/hostname": name, "nvidia.com/gpu.present": "true", "site": "fleet"}
    state = {STATE_LABEL: "unhealthy"}
    plane.must(
        "POST",
        "/api/v1/nodes",
        {
            "metadata": {"name": name, "labels": {**own, **furnished, **(labels and {**labels, **state})}},
            "spec": {"taints": [{"key": HARD_TAINT, "value": "reboot_node", "effect": "NoSchedule"}] if labels else []},
            "status": {
                "allocatable": {"cpu": "64", "memory": "512Gi", "pods": "110"},
                "images": images,
                "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "ready"}],
            },
        },
    )


def _hold(plane: ControlPlane, index: int, node: str, size: int) -> None:
    uid, now = plane.must("GET", f"/api/v1/nodes/{node}")["metadata"]["uid"], rfc3339(time.time())
    kind = PermitKind.WITHDRAWN
    name = SLOT_LEASE.format(kind=kind, pool=POOL, index=index)
    body = {
        "metadata": {
            "name": name,
            "labels": {POOL_LABEL: POOL, PERMIT_KIND_LABEL: str(kind)},
            "annotations": {POOL_SIZE_ANNOTATION: str(size)},
        },
        "spec": {"holderIdentity": f"{node}/{uid}", "acquireTime": now, "renewTime": now},
    }
    plane.must("POST", LEASES, body)


def _client(account: str, node: str, config: Config) -> KubeClient:
    return KubeClient(connect(account), node, config)


if __name__ == "__main__":
    sys.exit(main())
