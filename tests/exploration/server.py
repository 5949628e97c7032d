"""The cluster in memory, with pods that end slowly, with what refuses evictions, and with the API server's times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import Any

from agent.actions.api import JSON
from agent.model.text import rfc3339
from agent.simulation.in_memory_cluster import InMemoryCluster
from tests.observe import START

MERGE = "application/merge-patch+json"
REFUSALS: dict[str, tuple[int, dict[str, Any]]] = {
    "budget": (
        429,
        {
            "message": "Cannot evict pod as it would violate the pod's disruption budget.",
            "details": {"causes": [{"reason": "DisruptionBudget", "message": "The disruption budget needs 1 pod"}]},
        },
    ),
    "webhook": (403, {"message": 'admission webhook "web.example.com" denied the request: not now'}),
    "broken": (500, {"message": 'Internal error occurred: failed calling webhook "web.example.com": EOF'}),
}
OBSTACLES = (*REFUSALS,)


@dataclass(frozen=True)
class Manner:
    """How a pod behaves."""

    grace_s: int = 30
    ends_s: float = 5.0  # after it was asked; infinity: it stays until somebody helps
    owner: str = "ReplicaSet"
    gpu: bool = True
    annotations: tuple[tuple[str, str], ...] = ()
    tolerates: bool = False


class Server(InMemoryCluster):
    """What a test has of an API server, of kubelets and of the controllers that start a pod anew."""

    def __init__(self, chance: Random, now: Callable[[], float]) -> None:
        super().__init__()
        self.chance, self.now = chance, now
        self.obstacles: dict[str, str] = {}  # namespace → what refuses each eviction there
        self.refuses: dict[str, str] = {}  # kind → what refuses each write of an agent
        self.manners: dict[str, Manner] = {}  # by the pod's namespace and workload
        self.ends: dict[tuple[str, str], float] = {}  # namespace and name of a pod → when it ends
        self.asked: dict[tuple[str, str], float] = {}  # and when it was asked to
        self.made: dict[str, float] = {}  # by UID: when each object was
        self.ahead_s = 0.0  # by how much its clock is
        self._number = count()

    def pod(self, namespace: str, work: str, node: str) -> None:
        manner = self.manners[f"{namespace}/{work}"]
        name = f"{work}-{next(self._number)}"
        self.add_pod(namespace, name, node, int(manner.gpu), manner.owner)
        raw = self._objects["pods", namespace, name]
        raw["metadata"]["annotations"] = dict(manner.annotations)
        raw["metadata"]["labels"] = {"work": work}
        raw["spec"]["terminationGracePeriodSeconds"] = manner.grace_s
        if manner.tolerates:
            raw["spec"]["tolerations"] = [{"operator": "Exists"}]

    def change(self, kind: str, name: str, body: dict[str, Any], namespace: str = "") -> None:
        """By somebody else; nothing if it is not there."""
        if (kind, namespace, name) in self._objects:
            self._patch(kind, namespace, self._objects[kind, namespace, name], body, MERGE)

    def retaint(self, name: str, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> None:
        """By somebody else."""
        if raw := self._objects.get(("nodes", "", name)):
            self.change("nodes", name, {"spec": {"taints": change(raw["spec"].get("taints") or []) or None}})

    def drains(self) -> set[str]:
        """Nodes with pods that were asked to leave and are within their grace."""
        there = {key: raw for key in self.ends if (raw := self._objects.get(("pods", *key)))}
        within = {key for key, raw in there.items() if self.now() - self.asked[key] <= self._manner(raw).grace_s}
        return {there[key]["spec"]["nodeName"] for key in within}

    def all(self, kind: str) -> list[dict[str, Any]]:
        return [raw for (one, *_), raw in self._objects.items() if one == kind]

    def kubelets(self, down: set[str]) -> None:
        """Pods that were asked end in their time, and start anew where nothing keeps them away."""
        for key, at in list(self.ends.items()):
            raw = self._objects.get(("pods", *key))
            if raw is None or raw["spec"]["nodeName"] in self._gone():
                self.ends.pop(key)
                self._objects.pop(("pods", *key), None)
            elif at <= self.now() and raw["spec"]["nodeName"] not in down:
                self.ends.pop(key)
                del self._objects["pods", *key]
                self._again(raw)

    def __call__(
        self, method: str, path: str, body: Any = None, content_type: str = JSON, accept: str = JSON
    ) -> tuple[int, Any]:
        if method == "DELETE" and "/pods/" in path:
            *_, namespace, _, name = path.split("/")
            raw = self._objects.get(("pods", namespace, name))
            if raw and raw["metadata"]["uid"] == body["preconditions"]["uid"]:
                self._asked(raw)
                return 200, {}
        return super().__call__(method, path, body, content_type, accept)

    def _store(self, kind: str, namespace: str, body: dict[str, Any]) -> dict[str, Any]:
        now = self.clock()
        body["metadata"].setdefault("creationTimestamp", now)
        body["metadata"]["managedFields"] = [{"manager": "somebody", "time": now}]
        stored = super()._store(kind, namespace, body)
        self.made.setdefault(stored["metadata"]["uid"], self.now())
        return stored

    def clock(self, later_s: float = 0.0) -> str:
        """As the server has it."""
        return rfc3339(START + self.now() + self.ahead_s + later_s, "seconds")

    def fails(self, job: dict[str, Any], why: str) -> None:
        """As the Job controller says so."""
        ended = {"type": "Failed", "status": "True", "message": why, "lastTransitionTime": self.clock()}
        self._store("jobs", "gpu-health-agent", {**job, "status": {"conditions": [ended]}})

    def controllers(self) -> None:
        """A Job that lasts for too long has failed, and its pod goes."""
        for job in self.all("jobs"):
            lasts_s = self.now() - self.made[job["metadata"]["uid"]]
            if not job.get("status") and lasts_s > job["spec"]["activeDeadlineSeconds"]:
                self.fails(job, "Job was active longer than specified deadline")

    def _evict(self, namespace: str, name: str, body: dict[str, Any], dry_run: bool) -> tuple[int, Any]:
        raw = self._objects.get(("pods", namespace, name))
        if raw and namespace in self.obstacles:
            return REFUSALS[self.obstacles[namespace]]
        if raw is None or body["deleteOptions"]["preconditions"]["uid"] != raw["metadata"]["uid"] or dry_run:
            return super()._evict(namespace, name, body, dry_run)
        self.evicted.append(f"{namespace}/{name}")
        self._asked(raw)
        return 201, {}

    def _asked(self, raw: dict[str, Any]) -> None:
        """To end: by when it should, and when it will."""
        namespace, name = raw["metadata"]["namespace"], raw["metadata"]["name"]
        manner = self._manner(raw)
        ends = {"deletionTimestamp": self.clock(manner.grace_s), "deletionGracePeriodSeconds": manner.grace_s}
        self.change("pods", name, {"metadata": ends}, namespace)
        self.ends.setdefault((namespace, name), self.now() + manner.ends_s)
        self.asked.setdefault((namespace, name), self.now())

    def _again(self, raw: dict[str, Any]) -> None:
        manner, metadata = self._manner(raw), raw["metadata"]
        if manner.owner:
            free = [one["metadata"]["name"] for one in self.all("nodes") if manner.tolerates or not _closed(one)]
            if free:
                self.pod(metadata["namespace"], metadata["labels"]["work"], self.chance.choice(sorted(free)))

    def _manner(self, raw: dict[str, Any]) -> Manner:
        metadata = raw["metadata"]
        return self.manners.get(f"{metadata['namespace']}/{(metadata.get('labels') or {}).get('work')}", Manner())

    def _gone(self) -> set[str]:
        here = {raw["metadata"]["name"] for raw in self.all("nodes")}
        return {raw["spec"]["nodeName"] for raw in self.all("pods")} - here


def _closed(node: dict[str, Any]) -> bool:
    taints = node["spec"].get("taints") or ()
    return bool(node["spec"].get("unschedulable") or any(one["effect"] != "PreferNoSchedule" for one in taints))
