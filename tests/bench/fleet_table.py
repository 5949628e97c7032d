"""``make bench-nodes``: what ``gpu-health-agent nodes`` takes on a large cluster, as a process of its own.

Nodes of 24 kB on the real API server, one in twenty of them with a fault; what the client and the server spend.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from statistics import median

from agent.model.names import FAULTS_ANNOTATION
from agent.remediation.records import Records
from agent.remediation.stored import dump
from tests.actions.test_kube import fatal
from tests.bench.api_cost import cost
from tests.bench.furniture import add
from tests.bench.waiting_fleet import installed
from tests.cluster.control_plane import ControlPlane

_TIMES = 7


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.fleet_table")
    parser.add_argument("--nodes", type=int, nargs="+", default=[100, 1000])
    arguments = parser.parse_args()
    for size in arguments.nodes:
        with installed() as plane:
            for other in ("kwok", "kube-controller-manager", "kube-scheduler"):
                plane.end(other)
            fleet_table(plane, size)
    return 0


def fleet_table(plane: ControlPlane, size: int) -> None:
    sick = {FAULTS_ANNOTATION: dump(fatal(), 1, time.time(), Records())}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: add(plane, f"fleet-{i}", {}, sick if i % 20 == 0 else {}), range(size)))
    asks = [sys.executable, "-m", "agent", "nodes", "--kubeconfig", str(plane.kubeconfig)]
    subprocess.run(asks, check=True, stdout=subprocess.DEVNULL)  # caches are warm
    before, took = cost(plane), []
    for _ in range(_TIMES):
        began = time.monotonic()
        done = subprocess.run(asks, check=True, capture_output=True, text=True)
        took.append(time.monotonic() - began)
    spent = cost(plane).since(before)
    assert done.stdout.count("fleet-") >= size, done.stdout[:500]
    began = time.monotonic()
    subprocess.run([*asks[:3], "nodes", "--help"], check=True, stdout=subprocess.DEVNULL)
    each = f"{sum(spent.requests.values()) / _TIMES:.1f} requests, {sum(spent.size.values()) / _TIMES / 1e6:.2f} MB"
    print(
        f"{size} nodes: {median(took):.2f} s ({min(took):.2f} to {max(took):.2f}), of which the program's start takes "
        f"{time.monotonic() - began:.2f}; {each}, {1000 * spent.cpu_s / _TIMES:.0f} ms of the API server's CPU",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
