"""``make bench-flood``: what others wait while a whole fleet asks the API server at once.

The fleet lists a pool of Nodes of 24 kB over and over, so many times at once. Beside it the service account of somebody
else reads one ConfigMap twenty times a second: with our flow control, and without.
"""

from __future__ import annotations

import argparse
import http.client
import json
import ssl
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

from agent.actions.api import TABLE
from tests.bench.furniture import add
from tests.bench.waiting_fleet import installed
from tests.cluster.control_plane import ControlPlane

_TENANT = "/api/v1/namespaces/default/configmaps/one"
_POOL = "/api/v1/nodes?labelSelector=site%3Dfleet&includeObject=None&resourceVersion=0"
_FLOWS = "/apis/flowcontrol.apiserver.k8s.io/v1/flowschemas"
_EVERY_S = 0.05


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.flood")
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--at-once", type=int, nargs="+", default=[20, 100], help="requests of the fleet at a time")
    parser.add_argument("--seconds", type=float, default=20)
    arguments = parser.parse_args()
    with installed() as plane:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda i: add(plane, f"fleet-{i}", {}), range(arguments.nodes)))
        authority = json.loads(plane.kubeconfig.read_text())["clusters"][0]["cluster"]["certificate-authority"]
        agent, tenant = (Account(plane.port, authority, t) for t in (plane.agent_token("fleet-0"), _tenant(plane)))
        for other in ("kwok", "kube-controller-manager", "kube-scheduler"):
            plane.end(other)
        print(f"{arguments.nodes} Nodes; another account reads a ConfigMap {1 / _EVERY_S:.0f} times a second:")
        _tell("alone", *_measured(tenant, agent, 0, arguments.seconds))
        for flows in ("with our flow control", "without"):
            if flows == "without":
                for name in ("acts", "reports"):
                    plane.must("DELETE", f"{_FLOWS}/gpu-health-agent-{name}")
                time.sleep(15)  # until it is out of force
            for count in arguments.at_once:
                what = f"beside {count} lists of the pool at a time, {flows}"
                _tell(what, *_measured(tenant, agent, count, arguments.seconds))
    return 0


def _tenant(plane: ControlPlane) -> str:
    """The token of an account that may read ConfigMaps in its namespace, and one to read."""
    role = {"rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"]}]}
    binding = {
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reads"},
        "subjects": [{"kind": "ServiceAccount", "name": "tenant", "namespace": "default"}],
    }
    group = "/apis/rbac.authorization.k8s.io/v1/namespaces/default"
    plane.must("POST", "/api/v1/namespaces/default/configmaps", {"metadata": {"name": "one"}, "data": {"a": "b"}})
    plane.must("POST", "/api/v1/namespaces/default/serviceaccounts", {"metadata": {"name": "tenant"}})
    plane.must("POST", f"{group}/roles", {"metadata": {"name": "reads"}, **role})
    plane.must("POST", f"{group}/rolebindings", {"metadata": {"name": "reads"}, **binding})
    made = plane.must("POST", "/api/v1/namespaces/default/serviceaccounts/tenant/token", {"spec": {}})
    return str(made["status"]["token"])


@dataclass(frozen=True)
class Account:
    """Who asks, and where."""

    port: int
    authority: str
    token: str

    def asks(self, path: str, until: float, every_s: float = 0.0, accept: str = "application/json") -> list[float]:
        """Seconds that each answer took, until this monotonic time, over one connection. RuntimeError if it is none."""
        context, took = ssl.create_default_context(cafile=self.authority), list[float]()
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=120, context=context)
        while (began := time.monotonic()) < until:
            connection.request("GET", path, headers={"Authorization": f"Bearer {self.token}", "Accept": accept})
            answer = connection.getresponse()
            body = answer.read()
            if answer.status not in (200, 429):
                raise RuntimeError(f"GET {path}: {answer.status} {body[:200]!r}")
            took.append(time.monotonic() - began)
            time.sleep(max(0.0, every_s - took[-1]))
        return took


def _flood(agent: Account, at_once: int, until: float) -> list[float]:
    with ThreadPoolExecutor(at_once) as pool:
        asking = [pool.submit(agent.asks, _POOL, until, accept=TABLE) for _ in range(at_once)]
        return [one for asked in asking for one in asked.result()]


def _measured(tenant: Account, agent: Account, at_once: int, seconds: float) -> tuple[list[float], list[float]]:
    """What each request of the other account took, and each of the fleet's, which has a process of its own: seconds."""
    with ProcessPoolExecutor(1, get_context("spawn")) as beside:
        beside.submit(time.monotonic).result()  # it has started
        until = time.monotonic() + seconds
        fleet = beside.submit(_flood, agent, at_once, until) if at_once else None
        theirs = tenant.asks(_TENANT, until, _EVERY_S)
        return theirs, fleet.result() if fleet else []


def _tell(what: str, theirs: list[float], ours: list[float]) -> None:
    fleet = f"; the fleet {_of(ours)} over {len(ours)}" if ours else ""
    print(f"  {what}: the other account {_of(theirs)} over {len(theirs)} requests{fleet}", flush=True)


def _of(took: list[float]) -> str:
    ranked = sorted(took)
    return f"p50 {1000 * ranked[len(ranked) // 2]:.0f} ms, p99 {1000 * ranked[int(len(ranked) * 0.99)]:.0f} ms"


if __name__ == "__main__":
    sys.exit(main())
