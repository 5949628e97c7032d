"""The ways in which a pod leaves: by the Eviction API, or asked by a dry run of it and then deleted."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from agent.actions.api import STRATEGIC_PATCH, Api, ask
from agent.actions.permits import Clock
from agent.actions.rights import OURS
from agent.config.settings import Drain
from agent.model.errors import RefusedError
from agent.model.names import DISRUPTED
from agent.model.text import rfc3339
from agent.model.world import Pod

# Answers to this very request; webhooks may choose any other, and are known by their words.
_NO = (HTTPStatus.BAD_REQUEST, HTTPStatus.FORBIDDEN, HTTPStatus.UNPROCESSABLE_ENTITY)
_OVER = (HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT)  # the pod is gone, or its name is another's
_DENIED = re.compile(r"\bdenied (the )?request\b")


class Evictions:
    """Ends pods, each by its UID; remembers why a budget refused, and how checkpoints ended."""

    def __init__(self, api: Api, settings: Drain, wall: Clock) -> None:
        self._api, self._wall, self._in_steps = api, wall, settings.eviction == "ask_then_delete"
        self.blocked: dict[str, str] = {}  # by a budget: its deadline may end in a deletion
        self.denied: dict[str, str] = {}  # by a webhook, a policy or for want of a right: never
        self.checkpoints: Counter[str] = Counter()  # pods that declared one, by how it ended
        self.checkpoint_wait_s = 0.0

    def forget_others(self, keys: Collection[str]) -> None:
        """Only these pods are still there."""
        self.blocked = {key: why for key, why in self.blocked.items() if key in keys}
        self.denied = {key: why for key, why in self.denied.items() if key in keys}

    def evict(self, pod: Pod, labels: Mapping[str, str], outcome: str) -> None:
        """As the PodDisruptionBudgets allow; the UID keeps us from a namesake's successor."""
        body = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": pod.name, "namespace": pod.namespace, "labels": OURS},
            "deleteOptions": {"preconditions": {"uid": pod.uid}},
        }
        self.denied.pop(pod.key, None)
        try:
            if self._in_steps:
                # A dry run is answered as the eviction would be. Another agent may use up the budget in between.
                ask(self._api, "POST", f"{path_of(pod)}/eviction?dryRun=All", body)
                self._end(pod)
            else:
                ask(self._api, "POST", f"{path_of(pod)}/eviction", body)
            self.blocked.pop(pod.key, None)
            self._left(pod, outcome)
        except RefusedError as refused:
            # A busy or broken server answers alike, and has asked no budget: that must never lead to a deletion.
            if refused.status == HTTPStatus.TOO_MANY_REQUESTS and "DisruptionBudget" in refused.causes:
                self.blocked[pod.key] = refused.sentence
            elif (
                refused.status == HTTPStatus.INTERNAL_SERVER_ERROR
                and "more than one PodDisruptionBudget" in refused.sentence
            ):
                self.blocked[pod.key] = f"{refused.sentence} {self._budgets(pod, labels)}".strip()
            elif refused.status not in _OVER:
                self._deny(pod, refused)
                self.blocked.pop(pod.key, None)

    def delete(self, pod: Pod, outcome: str) -> None:
        """Past its budget, with its own grace period; only where the configuration says so."""
        self.denied.pop(pod.key, None)
        try:
            self._end(pod)
            self._left(pod, outcome)
        except RefusedError as refused:
            if refused.status not in _OVER:
                self._deny(pod, refused)

    def _deny(self, pod: Pod, refused: RefusedError) -> None:
        """Named, and asked again with the next round: the pods behind it may leave even so."""
        if refused.status not in _NO and not _DENIED.search(refused.sentence):
            raise refused  # the server's trouble, and every pod's
        self.denied[pod.key] = refused.sentence

    def _end(self, pod: Pod) -> None:
        if self._in_steps:
            # The Eviction API sets it itself: with it a Job's podFailurePolicy doesn't count the pod as failed.
            condition = {
                "type": DISRUPTED,
                "status": "True",
                "reason": "DeletionByGpuHealthAgent",
                "message": "moved away from a GPU fault",
                "lastTransitionTime": rfc3339(self._wall(), "seconds"),
            }
            body = {"metadata": {"uid": pod.uid}, "status": {"conditions": [condition]}}
            ask(self._api, "PATCH", f"{path_of(pod)}/status", body, STRATEGIC_PATCH)
        ask(self._api, "DELETE", path_of(pod), {"preconditions": {"uid": pod.uid}})

    def _left(self, pod: Pod, outcome: str) -> None:
        if pod.checkpoint:
            self.checkpoints[outcome] += 1
            self.checkpoint_wait_s += pod.asked_s or 0

    def _budgets(self, pod: Pod, labels: Mapping[str, str]) -> str:
        """The names of the budgets over a pod, as far as they may be read."""
        try:
            path = f"/apis/policy/v1/namespaces/{quote(pod.namespace)}/poddisruptionbudgets"
            found = ask(self._api, "GET", path).get("items", ())
        except RefusedError:
            return ""
        names = [b["metadata"]["name"] for b in found if _selects((b.get("spec") or {}).get("selector"), labels)]
        return f"({', '.join(sorted(names))})" if names else ""


def path_of(pod: Pod) -> str:
    return f"/api/v1/namespaces/{quote(pod.namespace)}/pods/{quote(pod.name)}"


def _selects(selector: Any, labels: Mapping[str, str]) -> bool:
    """A label selector as the API server reads it; an absent one selects nothing, an empty one everything."""
    if not isinstance(selector, dict):
        return False
    wanted: Mapping[str, str] = selector.get("matchLabels") or {}
    if any(labels.get(key) != value for key, value in wanted.items()):
        return False
    return all(_matches(one, labels) for one in selector.get("matchExpressions") or ())


def _matches(one: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    there, values = one["key"] in labels, one.get("values") or ()
    match one["operator"]:
        case "In":
            return bool(labels.get(one["key"]) in values)
        case "NotIn":
            return bool(labels.get(one["key"]) not in values)
        case "Exists":
            return there
        case _:
            return not there
