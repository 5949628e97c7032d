"""``make bench``: kernel-log line → taint against a bare PATCH, what an idle agent takes, a fleet, a crowd."""

from __future__ import annotations

import http.client
import json
import os
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from agent.actions.api import connect
from tests.bench.crowd import crowd
from tests.bench.door import door
from tests.bench.fleet import fleet
from tests.bench.flight import flight
from tests.bench.furniture import furniture
from tests.bench.judging import judging
from tests.bench.usage import cpu_s, rollup
from tests.bench.witness import witness
from tests.cluster.build import assets
from tests.cluster.control_plane import ControlPlane
from tests.running import Running

TRIALS, IDLE_S = 50, 65
XID = "NVRM: Xid (PCI:0000:1b:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus."
MANIFESTS = Path(__file__).parents[2] / "daemonset"
NODE, OTHER_NODE = "node-0", "node-1"


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="gpu-health-agent-bench-") as name:
        folder = Path(name)
        plane = ControlPlane(folder / "plane", assets())
        plane.up(nodes=2)
        try:
            plane.install(MANIFESTS)
            latency(plane, folder / "small")
            for node in (NODE, OTHER_NODE):
                furnish(plane, node)
            latency(plane, folder / "furnished")
            for profile in ("h100-8", "h100-16"):
                for split in (False, True):
                    footprint(plane, folder, profile, split)
            fleet(plane)
            judging()
            flight()
            crowd()
            door()
            witness()
        finally:
            plane.down()
    return 0


class Taints(threading.Thread):
    """Watches the node and notes when its taint was seen."""

    def __init__(self, plane: ControlPlane, ca: Path, token: str) -> None:
        super().__init__(daemon=True)
        context = ssl.create_default_context(cafile=str(ca))
        self._connection = http.client.HTTPSConnection("127.0.0.1", plane.port, context=context)
        path = f"/api/v1/nodes?watch=true&fieldSelector=metadata.name%3D{NODE}"
        self._connection.request("GET", path, headers={"Authorization": f"Bearer {token}"})
        self._response = self._connection.getresponse()
        self.seen_at: float | None = None
        self.changed = threading.Event()

    def run(self) -> None:
        for line in self._lines():
            taints = json.loads(line)["object"]["spec"].get("taints") or ()
            if any(t["key"] == "gpu-health-agent/unhealthy" for t in taints):
                self.seen_at = self.seen_at or time.monotonic()
                self.changed.set()

    def _lines(self) -> Iterator[bytes]:
        while line := self._response.readline():
            yield line


def furnish(plane: ControlPlane, node: str) -> None:
    """Make a Node as large as a GPU cluster has them."""
    images, labels = furniture()
    merge = "application/merge-patch+json"
    plane.must("PATCH", f"/api/v1/nodes/{node}/status", {"status": {"images": images}}, merge)
    plane.must("PATCH", f"/api/v1/nodes/{node}", {"metadata": {"labels": labels}}, merge)


def latency(plane: ControlPlane, folder: Path) -> None:
    folder.mkdir()
    config = folder / "config.yaml"
    fifo = folder / "kmsg"
    os.mkfifo(fifo)
    config.write_text(
        yaml.safe_dump(
            {
                "mode": "taint",
                "sources": {"nvml": {"enabled": False}, "kmsg": {"path": str(fifo)}},
                "http": {"address": "127.0.0.1", "port": 0},
            }
        )
    )
    admin = json.loads(plane.kubeconfig.read_text())
    ca = Path(admin["clusters"][0]["cluster"]["certificate-authority"])
    taints = Taints(plane, ca, admin["users"][0]["user"]["token"])
    taints.start()
    bare, whole = list[float](), list[float]()
    api = connect(str(plane.kubeconfig))
    for trial in range(TRIALS):
        agent = Agent(plane, folder, config)
        agent.until(lambda state: state["status"] == "healthy" and not state["waits"])
        time.sleep(0.3)
        taints.seen_at = None
        taints.changed.clear()
        began = time.monotonic()
        fifo.write_bytes(f"3,{trial + 1},1,-;{XID}\n".encode())
        if not taints.changed.wait(30) or taints.seen_at is None:
            raise RuntimeError("no taint came")
        whole.append(taints.seen_at - began)
        agent.end()
        forget(plane)
        time.sleep(0.3)
        for _ in range(5):  # spread over the run, so that both meet the same machine
            body = [{"op": "add", "path": "/metadata/annotations", "value": {"bench": str(time.monotonic())}}]
            began = time.monotonic()
            api("PATCH", f"/api/v1/nodes/{OTHER_NODE}", body, "application/json-patch+json")
            bare.append(time.monotonic() - began)
    size_kb = len(json.dumps(plane.must("GET", f"/api/v1/nodes/{OTHER_NODE}"))) / 1000
    print(
        f"kernel-log line → taint seen by a watch, {TRIALS} trials, against a bare PATCH, of Nodes of {size_kb:.0f} kB"
    )
    print(f"  bare PATCH                    p50 {ms(bare, 50)}  p99 {ms(bare, 99)}")
    print(f"  line → reads → permit → taint p50 {ms(whole, 50)}  p99 {ms(whole, 99)}")
    print(f"  ratio                         p50 {ratio(whole, bare, 50)}  p99 {ratio(whole, bare, 99)}", flush=True)


def footprint(plane: ControlPlane, folder: Path, profile: str, split: bool) -> None:
    """What an agent takes that has nothing to do, in one container or in two."""
    config, scenario, simulation = folder / "idle.yaml", folder / "scenario.yaml", folder / f"{profile}-{split}"
    config.write_text(yaml.safe_dump({"mode": "evict", "http": {"address": "127.0.0.1", "port": 0}}))
    scenario.write_text(yaml.safe_dump({"profile": profile}))
    simulated = ["--simulate", str(scenario), "--simulation-dir", str(simulation)]
    socket = folder / "sources.sock"
    command = [sys.executable, "-m", "agent", "sources", "--config", str(config), "--socket", str(socket), *simulated]
    other = subprocess.Popen(command, stderr=subprocess.DEVNULL) if split else None
    agent = Agent(plane, folder, config, *(["--sources", str(socket)] if other else simulated))
    agent.until(lambda state: state["status"] == "healthy" and not state["waits"])
    time.sleep(5)
    containers = {"agent": [agent.pid, *children(agent.pid)]}
    if other:
        containers["sources"] = [other.pid, *children(other.pid)]
    cpu = {name: cpu_s(pids) for name, pids in containers.items()}
    sent, began = agent.state()["requests"], time.monotonic()
    time.sleep(IDLE_S)
    elapsed = time.monotonic() - began
    after = agent.state()["requests"]
    print(f"idle, {profile}, 5 s poll, {'two containers' if split else 'one container'}, {elapsed:.0f} s")
    for name, pids in containers.items():
        for pid in pids:
            print(f"  {name_of(pid):<28}  RSS {rollup(pid, 'Rss'):5.1f} MiB  PSS {rollup(pid, 'Pss'):5.1f} MiB")
        memory, anonymous = (sum(rollup(pid, kind) for pid in pids) for kind in ("Pss", "Pss_Anon"))
        share = 100 * (cpu_s(pids) - cpu[name]) / elapsed
        print(f"  container {name:<18}  PSS {memory:5.1f} MiB, anonymous {anonymous:.1f}  CPU {share:.2f} % of a core")
        if split and memory > requested_mib(name):
            raise RuntimeError(f"the manifest requests {requested_mib(name)} MiB for {name}, and it takes more")
    asked = sum(after.values()) - sum(sent.values())
    written = asked - sum(after.get(verb, 0) - sent.get(verb, 0) for verb in ("GET", "WATCH"))
    print(f"  API requests                  {60 * asked / elapsed:.2f} a minute, {written} of them writes", flush=True)
    agent.end()
    if other:
        other.terminate()
        other.wait(10)


def requested_mib(container: str) -> int:
    """The memory that the shipped DaemonSet requests for one of its containers."""
    made = yaml.safe_load((MANIFESTS / "base" / "daemonset.yaml").read_text())["spec"]["template"]["spec"]
    (memory,) = (c["resources"]["requests"]["memory"] for c in made["containers"] if c["name"] == container)
    return int(memory.removesuffix("Mi"))


class Agent(Running):
    """``gpu-health-agent run`` with the ServiceAccount's own credentials."""

    def __init__(self, plane: ControlPlane, folder: Path, config: Path, *extra: str) -> None:
        super().__init__(folder / "agent.log", config, NODE, plane.agent_kubeconfig(NODE), *extra)

    def state(self) -> dict[str, Any]:
        return dict(json.loads(self.get("/state")))

    def until(self, wanted: Any, timeout_s: float = 60) -> dict[str, Any]:
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            try:
                state = self.state()
                if wanted(state):
                    return state
            except (OSError, ValueError):
                pass
            time.sleep(0.02)
        raise RuntimeError(f"the agent did not get there:\n{self._log.read_text()[-3000:]}")


def forget(plane: ControlPlane) -> None:
    """The node as it was before the trial."""
    merge = "application/merge-patch+json"
    plane.must(
        "PATCH",
        f"/api/v1/nodes/{NODE}",
        {"spec": {"taints": None}, "metadata": {"annotations": {"gpu-health-agent/faults": None}}},
        merge,
    )
    leases = "/apis/coordination.k8s.io/v1/namespaces/gpu-health-agent/leases"
    for lease in plane.must("GET", leases)["items"]:
        plane.must("PATCH", f"{leases}/{lease['metadata']['name']}", {"spec": {"holderIdentity": None}}, merge)


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def name_of(pid: int) -> str:
    words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    return words[words.index("-m") + 1]


def percentile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def ms(values: list[float], percent: int) -> str:
    return f"{1000 * percentile(values, percent):6.2f} ms"


def ratio(values: list[float], base: list[float], percent: int) -> str:
    return f"{percentile(values, percent) / percentile(base, percent):6.2f} x  "


if __name__ == "__main__":
    sys.exit(main())
