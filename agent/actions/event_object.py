"""Kubernetes Events on the Node, on a pod that runs there, and on what controls such a pod."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from agent.actions.api import Api, ask
from agent.actions.controllers import behind
from agent.actions.leases import Clock
from agent.model.errors import RefusedError, UnreachableError
from agent.model.steps import Announce
from agent.model.text import rfc3339
from agent.model.world import About

# A namespace that takes no Event: its webhook, quota or end is no trouble of the node.
_AGAIN_S, _GIVEN_UP_S, _LEFT_ALONE_S = 3.0, 30.0, 600.0


class Events:
    """Sends each Event once in a life of the agent."""

    def __init__(self, api: Api, node: str, clock: Clock, wall: Clock) -> None:
        self._api, self._node, self._clock, self._wall = api, node, clock, wall
        self._vain: dict[str, tuple[float, float]] = {}  # namespace → since when it takes none, and the last try
        self.sent: frozenset[str] = frozenset()  # by their names; with those that were given up

    def send(self, step: Announce, pod: About | None) -> bool:
        """Whether it was sent. ``pod``: that of the step's UID, where it is known. RefusedError, UnreachableError."""
        about, now = step.about or pod, self._clock()
        if about and about.namespace in self._vain:
            since, last = self._vain[about.namespace]
            if now - since >= _LEFT_ALONE_S:
                del self._vain[about.namespace]
            elif now - since >= _GIVEN_UP_S:
                self.sent |= {step.name}
                return False
            elif now - last < _AGAIN_S:
                return False
        try:
            self._post(step, about)
        except (RefusedError, UnreachableError):
            if about:
                self._vain[about.namespace] = self._vain.get(about.namespace, (now, now))[0], self._clock()
            raise
        self.sent |= {step.name}
        return True

    def _post(self, step: Announce, about: About | None) -> None:
        namespace, event = event_of(step, self._node, about and behind(self._api, about), self._now())
        try:
            ask(self._api, "POST", f"/api/v1/namespaces/{quote(namespace, safe='')}/events", event)
        except RefusedError as refused:
            if refused.status != HTTPStatus.CONFLICT:  # told before a restart
                raise
        self._vain.pop(namespace, None)

    def _now(self) -> str:
        return rfc3339(self._wall(), "seconds")


def event_of(step: Announce, node: str, about: About | None, now: str) -> tuple[str, dict[str, Any]]:
    """The Event's namespace, and the Event. ``about``: None is the Node."""
    # A Node has no namespace: its Events are kept in "default". Its uid is its name, as the kubelet has it.
    namespace = about.namespace if about else "default"
    kind = {"kind": about.kind, "namespace": namespace} if about else {"kind": "Node"}
    name, uid, version = (about.name, about.uid, about.version) if about else (node, node, "v1")
    return namespace, {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": step.name, "namespace": namespace},
        "type": "Warning" if step.warning else "Normal",
        "reason": step.reason,
        "message": step.message,
        "involvedObject": {"apiVersion": version, **kind, "name": name, "uid": uid},
        "source": {"component": "gpu-health-agent", "host": node},
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
