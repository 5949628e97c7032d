"""What the drill sees while it waits: the kit's pods, the node, what the agent and the training say of themselves."""

from __future__ import annotations

import threading
import time
from typing import Any

import yaml

from agent.drill.cluster import Cluster
from agent.drill.kit import Object
from agent.model.errors import RefusedError

REPLICAS, GATEWAYS = 3, 2
_METRICS, _KIT = 9836, 8080
_LISTEN_S, _SILENT_S = 0.1, 30.0


class Watch:
    """Looks, and remembers how far each training was."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._heard = dict[str, tuple[float, int, float]]()  # when a training was first heard, its step then, when last
        self.steps: dict[str, dict[str, int]] = {}  # UID of a training pod → what it last said of itself

    def state(self, node: str) -> dict[str, Any]:
        """What the agent there says of itself."""
        pod = self._cluster.agent_pods().get(node)
        answer = pod and self._cluster.ask_pod(self._cluster.agents, pod["metadata"]["name"], _METRICS, "/state")
        return answer or {}

    def checkpoints(self, node: str) -> int | None:
        """How many the agent there has counted as saved; None while it is not heard."""
        state = self.state(node)
        return int(state.get("checkpoints", {}).get("saved", 0)) if state else None

    def hear(self, training: Object) -> dict[str, int]:
        """How far a training is; what it last said is kept."""
        metadata = training["metadata"]
        said = self._cluster.ask_pod(metadata["namespace"], metadata["name"], _KIT, "/status")
        if isinstance(said, dict) and "step" in said:
            self.steps[metadata["uid"]] = said
            now = time.monotonic()
            self._heard[metadata["uid"]] = (*self._heard.get(metadata["uid"], (now, said["step"]))[:2], now)
            return said
        return {}

    def served_step(self, replica: Object) -> int | None:
        """The step of the checkpoint that a replica answers from; None while it has none."""
        metadata = replica["metadata"]
        said = self._cluster.ask_pod(metadata["namespace"], metadata["name"], _KIT, "/readyz")
        return said.get("step") if isinstance(said, dict) else None

    def pace(self, uid: str) -> float:
        """Steps a second of a training, as long as it was heard."""
        began, first, last = self._heard[uid]
        return (self.steps[uid]["step"] - first) / max(last - began, 1.0)

    def follow(self, training: Object) -> None:
        """Hear it until it falls silent, in a thread of its own: who asks a pod that is gone waits long."""

        def listen() -> None:
            heard = time.monotonic()
            while time.monotonic() - heard < _SILENT_S:
                if self.hear(training):
                    heard = time.monotonic()
                time.sleep(_LISTEN_S)

        threading.Thread(target=listen, daemon=True).start()

    def whole(self) -> bool:
        enough = len(self.ready("inference")) >= REPLICAS and len(self.ready("gateway")) >= GATEWAYS
        return enough and any(self.hear(pod) for pod in self.ready("training"))

    def live(self, app: str) -> list[Object]:
        return [p for p in self._cluster.pods() if p["metadata"].get("labels", {}).get("app") == app and not ending(p)]

    def ready(self, app: str) -> list[Object]:
        return [
            pod
            for pod in self.live(app)
            if any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions") or ())
        ]

    def placed(self, app: str) -> int:
        """How many have a node, and are not ending."""
        return sum(bool(pod["spec"].get("nodeName")) for pod in self.live(app))

    def new(self, app: str, known: set[str]) -> list[str]:
        """The names of pods whose UIDs are not among those known."""
        return [pod["metadata"]["name"] for pod in self.live(app) if pod["metadata"]["uid"] not in known]

    def uids(self) -> set[str]:
        return {pod["metadata"]["uid"] for pod in self._cluster.pods()}

    def simulation(self, agent: Object) -> Object | None:
        """What the agent's configuration says of simulated GPUs; None if it can't be read."""
        maps = [v["configMap"]["name"] for v in agent["spec"].get("volumes") or () if "configMap" in v]
        arguments = [word for c in agent["spec"]["containers"] for word in c.get("args") or ()]
        try:
            texts = [
                text
                for name in maps
                for text in self._cluster.get(f"/api/v1/namespaces/{self._cluster.agents}/configmaps/{name}")[
                    "data"
                ].values()
            ]
            settings = [(yaml.safe_load(text).get("sources") or {}).get("simulated") or {} for text in texts]
            found: Object = next((one for one in settings if one.get("scenario")), {})
            return {"scenario": "idle", **found} if "--simulate" in arguments else found
        except (RefusedError, KeyError, TypeError, AttributeError, yaml.YAMLError):
            return None


def ending(pod: Object) -> bool:
    phase = pod.get("status", {}).get("phase")
    return bool(pod["metadata"].get("deletionTimestamp")) or phase in ("Succeeded", "Failed")


def restarts(pod: Object) -> int:
    return sum(int(one.get("restartCount", 0)) for one in pod.get("status", {}).get("containerStatuses") or ())
