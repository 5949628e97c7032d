"""What the drill sees of a node's withdrawal, look by look: taint, checkpoint, the pods that leave and come."""

from __future__ import annotations

import time

from agent.drill.choice import Choice
from agent.drill.cluster import Cluster
from agent.drill.outcome import Part
from agent.drill.watch import REPLICAS, Watch, ending

SAVED = "checkpoint saved"


class Withdrawal:
    """Writes the moments into the part as they are seen."""

    def __init__(self, cluster: Cluster, watched: Watch, part: Part, choice: Choice, counted: int) -> None:
        self._cluster, self._watched, self._part, self._node = cluster, watched, part, choice.node
        self.leaving = {pod["metadata"]["uid"]: pod["metadata"]["name"] for pod in choice.pods}
        (self.training,) = (pod for pod in choice.pods if pod["metadata"]["labels"].get("app") == "training")
        self._there = {pod["metadata"]["uid"] for pod in cluster.pods()}  # before any left
        self._saved = 0  # the training's last checkpoint before the taint
        self._counted = counted  # checkpoints that the agent counted as saved until now
        self._saved_at: float | None = None  # when the training told of one
        self._left: float | None = None  # when it was seen evicted
        self.count = 0  # checkpoints that the agent counts since

    def see(self) -> bool:
        """Look once; whether the node was seen tainted by now."""
        saved = self._watched.steps.get(self.training["metadata"]["uid"], {}).get("saved_step", 0)
        if self._part.at("tainted") is None:
            if not self._cluster.tainted(self._node):
                self._saved = max(saved, self._saved)
                return False
            self._part.note("tainted", time.time())
        if saved > self._saved and self._saved_at is None and self._part.at("all are evicted") is None:
            self._saved_at = time.time()
        self._count()
        self._follow()
        return True

    def _count(self) -> None:
        """The agent's word decides: what a training saved of its own accord is none that was asked for.

        A pod is evicted once it has answered, and a quick one is gone before it can be heard telling of its last save:
        then it saved no later than it was seen to leave.
        """
        if self.count or (counted := self._watched.checkpoints(self._node)) is None:
            return
        self.count = max(0, counted - self._counted)
        if self.count:
            self._part.note(SAVED, self._saved_at or self._left or time.time())

    def _follow(self) -> None:
        """The pods that leave, and those that take their places."""
        now, pods, part = time.time(), self._cluster.pods(), self._part
        staying = {pod["metadata"]["uid"] for pod in pods if not ending(pod)} & self.leaving.keys()
        if self._left is None and self.training["metadata"]["uid"] not in staying:
            self._left = now
        if len(staying) < len(self.leaving):
            part.note("evicted", now, (self.leaving[uid] for uid in self.leaving.keys() - staying))
        if staying:
            return
        part.note("all are evicted", now, self.leaving.values())
        elsewhere = [pod for pod in pods if not ending(pod) and pod["spec"].get("nodeName") not in (None, self._node)]
        count = {
            app: sum(pod["metadata"]["labels"].get("app") == app for pod in elsewhere)
            for app in ("inference", "training")
        }
        if count["training"] and count["inference"] >= REPLICAS:
            came = [pod["metadata"]["name"] for pod in elsewhere if pod["metadata"]["uid"] not in self._there]
            part.note("all evicted pods are replaced on other nodes", now, came)
            if self._watched.whole():
                part.note("all are ready", time.time())
