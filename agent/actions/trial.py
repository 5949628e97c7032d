"""Whether the agent may do what its mode needs: a trial of each right after the start, by requests that change nothing.

Dry-run writes, and no SelfSubjectRulesReview: that one is incomplete wherever a webhook authorizes (EKS, GKE), and says
nothing of webhooks, policies and quotas, which refuse as well. The dry runs write our Node, an Event on it and a Lease.
Every other request names an object that nobody has: the API server refuses whoever may not before it looks for it.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from agent.actions.api import JSON, JSON_PATCH, METADATA, STRATEGIC_PATCH, Api, ask
from agent.actions.event_object import event_of
from agent.actions.rights import Right, of_mode
from agent.config.settings import Config
from agent.model.errors import RefusedError, UnreachableError
from agent.model.names import SLOT_LEASE
from agent.model.steps import Announce, On, Wait
from agent.model.text import rfc3339
from agent.model.world import PermitKind

_NOBODY, _THERE = "gpu-health-agent-trial", "default"  # an object that nobody has, in the namespace of a Node's Events
_METHODS = {"create": "POST", "update": "PUT", "patch": "PATCH", "delete": "DELETE"}
_FORBIDDEN = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
_BUSY = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)


class Trial:
    """The trials of one life of the agent. A right that passed has no second one."""

    def __init__(self, api: Api, node: str, config: Config, wall: Callable[[], float]) -> None:
        self._api, self._node, self._config, self._wall = api, node, config, wall
        self._left = [(right, verb) for right in of_mode(config) for verb in right.verbs]

    def lacks(self, go_on: Callable[[], bool]) -> tuple[Wait, ...] | None:
        """What is refused or got no answer, empty if nothing is; None: more urgent work came between."""
        lacks: list[Wait] = []
        for right, verb in tuple(self._left):
            if not go_on():
                return None
            try:
                refused = self._refused(right, verb)
            except UnreachableError as silence:
                return (*lacks, _untold(right, verb, silence))
            if refused is None:
                self._left.remove((right, verb))
            elif refused.status in _BUSY:
                return (*lacks, _untold(right, verb, refused))
            else:
                of = f"daemonset/{f'components/{right.overlay}' if right.overlay else 'base'}"
                why = f"the agent may not {verb} {right.resource}, as its mode needs ({of} grants it): {refused}"
                lacks.append(Wait(why, On.REFUSED))
        return tuple(lacks)

    def _refused(self, right: Right, verb: str) -> RefusedError | None:
        body, content_type = self._body(right, verb)
        try:
            method, accept = (_METHODS[verb], JSON) if verb in _METHODS else ("GET", METADATA)
            ask(self._api, method, self._path(right, verb), body, content_type, accept)
        except RefusedError as refused:
            # Without a body only these say that the right is missing. With one, every other refusal means that it would
            # not be written, except that it is there already, or that a webhook knows no dry run.
            passed = (HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT, HTTPStatus.BAD_REQUEST)
            lacking = refused.status not in passed if body else refused.status in (*_FORBIDDEN, *_BUSY)
            return refused if lacking else None
        return None

    def _path(self, right: Right, verb: str) -> str:
        resource, _, below = right.resource.partition("/")
        path = f"/apis/{right.group}/v1" if right.group else "/api/v1"
        named = verb in ("get", "update", "patch", "delete") or below
        if right.own:
            path += f"/namespaces/{quote(self._config.budget.namespace, safe='')}"
        elif resource not in ("nodes", "persistentvolumes", "devicetaintrules") and verb != "list":
            path += f"/namespaces/{_THERE}"
        path += f"/{resource}"
        if named:
            path += f"/{quote(self._node if resource == 'nodes' else right.name or _NOBODY, safe='')}"
        if below:
            path += f"/{below}"
        return path + {"get": "", "list": "?limit=1"}.get(verb, "?dryRun=All")

    def _body(self, right: Right, verb: str) -> tuple[Any, str]:
        """A body that changes nothing and that an API server would take from us; None where there is no such body."""
        match right.resource, verb:
            case "nodes", "patch":
                return [{"op": "test", "path": "/metadata/name", "value": self._node}], JSON_PATCH
            case "nodes/status", "patch":
                return {"metadata": {"name": self._node}}, STRATEGIC_PATCH
            case "events", "create":
                announced = Announce(_NOBODY, False, "Trial", "May Events be written?")
                return event_of(announced, self._node, None, rfc3339(self._wall(), "seconds"))[1], JSON
            case "leases", "create":
                name = SLOT_LEASE.format(kind=PermitKind.WITHDRAWN, pool=self._config.budget.pool, index=0)
                spec = {"holderIdentity": f"{self._node}/{_NOBODY}"}
                kind = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease"}
                return {**kind, "metadata": {"name": name}, "spec": spec}, JSON
        return None, JSON


def _untold(right: Right, verb: str, error: RefusedError | UnreachableError) -> Wait:
    """A server that is busy, or a webhook that hangs for longer than a request lasts. The others are tried later."""
    why = f"whether the agent may {verb} {right.resource}, as its mode needs, is not known yet: {error}"
    return Wait(why, On.REFUSED)
