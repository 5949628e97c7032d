"""What clients cost an API server, by its own counters, and what they leave in etcd, by etcd's own word."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.bench.usage import cpu_s
from tests.cluster.control_plane import ControlPlane

_OF_AGENTS = ("nodes", "leases", "configmaps", "events", "pods", "resourceslices", "selfsubjectaccessreviews")
_OTHERS = ("PUT nodes/status", "PATCH leases")  # so the bench's kubelets and holders write alone
OWN_NODE, PAUSE = "GET nodes", "GET configmaps"  # what each agent asks for whatever it waits for


@dataclass(frozen=True, slots=True)
class Cost:
    """What the API server did so far, but for what others write."""

    requests: Counter[str]  # by what was asked
    size: Counter[str]  # bytes of the answers
    watched: float  # bytes of watches' events of Nodes
    cpu_s: float
    at: float  # monotonic seconds
    asking_cpu_s: float = 0.0  # what it took to say so
    asking_s: float = 0.0

    def since(self, before: Cost) -> Cost:
        return Cost(
            self.requests - before.requests,
            self.size - before.size,
            self.watched - before.watched,
            self.cpu_s - before.cpu_s - before.asking_cpu_s,
            self.at - before.at - before.asking_s,
        )


def cost(plane: ControlPlane) -> Cost:
    server = [plane.pid("kube-apiserver")]
    used_s, at = cpu_s(server), time.monotonic()
    text = str(plane.request("GET", "/metrics")[1])
    events = re.findall(r"^apiserver_watch_events_sizes_sum{(.*?)} (\S+)$", text, re.MULTILINE)
    return Cost(
        Counter({key: int(value) for key, value in _counted(text, "apiserver_request_total")}),
        Counter({key: int(value) for key, value in _counted(text, "apiserver_response_sizes_sum")}),
        sum(float(value) for labels, value in events if 'resource="nodes"' in labels or 'kind="Node"' in labels),
        used_s,
        at,
        cpu_s(server) - used_s,
        time.monotonic() - at,
    )


def over(plane: ControlPlane, seconds: float) -> Cost:
    before = cost(plane)
    time.sleep(seconds)
    return cost(plane).since(before)


def _counted(text: str, name: str) -> Iterator[tuple[str, float]]:
    """By verb and resource, of those that the agents ask for."""
    found = Counter[str]()
    for labels, value in re.findall(rf"^{name}{{(.*?)}} (\S+)$", text, re.MULTILINE):
        said = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        what = f"{said['verb']} {said['resource']}" + (f"/{said['subresource']}" if said["subresource"] else "")
        # A watch is counted when it ends, with the bytes of its whole life; its events are told apart.
        if said["resource"] in _OF_AGENTS and what not in _OTHERS and said["verb"] != "WATCH":
            found[what] += float(value)  # type: ignore[assignment]
    yield from found.items()


def stored(plane: ControlPlane, prefix: str) -> dict[str, int]:
    """Bytes of each object in etcd whose key begins so, its key with it."""
    command = Path(f"/proc/{plane.pid('etcd')}/cmdline").read_text().split("\0")
    url = next(one for one in command if one.startswith("--listen-client-urls=")).partition("=")[2]
    first = prefix.encode()
    body = {"key": b64encode(first).decode(), "range_end": b64encode(first[:-1] + bytes([first[-1] + 1])).decode()}
    asked = urllib.request.Request(f"{url}/v3/kv/range", json.dumps(body).encode(), method="POST")
    with urllib.request.urlopen(asked, timeout=60) as answer:
        pairs = json.load(answer).get("kvs") or ()
    return {b64decode(p["key"]).decode(): len(b64decode(p["key"])) + len(b64decode(p["value"])) for p in pairs}
