"""Kubernetes Events on the Node, on a pod that runs there, and on what controls such a pod."""

from __future__ import annotations

from collections import Counter
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from agent.actions.api import Api, ask
from agent.actions.controllers import behind
from agent.actions.permits import Clock
from agent.model.errors import RefusedError, UnreachableError
from agent.model.steps import Announce
from agent.model.text import rfc3339
from agent.model.world import About

_MOST_TRIES = 3  # of an Event in somebody else's namespace: its webhook, quota or end is no trouble of the node


class Events:
    """Sends each Event once in a life of the agent."""

    def __init__(self, api: Api, node: str, wall: Clock) -> None:
        self._api, self._node, self._wall = api, node, wall
        self._tries: Counter[str] = Counter()
        self.sent: frozenset[str] = frozenset()  # by their names; with those that were given up

    def send(self, step: Announce, pod: About | None) -> None:
        """``pod``: that of the step's UID, where it is known. RefusedError, UnreachableError: send it again."""
        about = step.about or pod
        self._tries[step.name] += 1
        try:
            namespace, event = event_of(step, self._node, about and behind(self._api, about), self._now())
            ask(self._api, "POST", f"/api/v1/namespaces/{quote(namespace, safe='')}/events", event)
        except (RefusedError, UnreachableError) as error:
            told = isinstance(error, RefusedError) and error.status == HTTPStatus.CONFLICT  # before a restart
            if not told and not (about and self._tries[step.name] >= _MOST_TRIES):
                raise
        self.sent |= {step.name}
        del self._tries[step.name]

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
