"""The ways in which a pod leaves: by the Eviction API, or asked by a dry run of it and then deleted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from agent.actions.api import STRATEGIC_PATCH, Api, ask
from agent.actions.leases import Clock
from agent.actions.rights import OURS
from agent.config.settings import Drain
from agent.model.errors import RefusedError, UnreachableError
from agent.model.names import DISRUPTED
from agent.model.steps import Delete, Evict
from agent.model.text import printable, rfc3339
from agent.model.world import Cause, Pod

# Answers to this very request.
_NO = (HTTPStatus.BAD_REQUEST, HTTPStatus.FORBIDDEN, HTTPStatus.UNPROCESSABLE_ENTITY)
_OVER = (HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT)  # the pod is gone, or its name is another's
_MOST_CHARS = 500  # of a webhook's sentence


class Evictions:
    """Ends pods, each by its UID; remembers whom somebody refused and why, and how checkpoints ended."""

    def __init__(self, api: Api, settings: Drain, wall: Clock) -> None:
        self._api, self._wall, self._in_steps = api, wall, settings.eviction == "ask_then_delete"
        # By the pod's UID: a namesake that follows it was refused nothing.
        self.blocked: dict[str, str] = {}  # by a budget: after the deadline a deletion may follow
        self.denied: dict[
            str, str
        ] = {}  # by a webhook or a policy, for want of a right or of an answer: no deletion follows
        self.refused: dict[str, None] = {}  # all whose last request was in vain, the one longest ago first
        self.moved: dict[str, tuple[Pod, Cause]] = {}  # all that left since the withdrawal, in order
        self.checkpoints: Counter[str] = Counter()  # pods that declared one, by how it ended
        self.checkpoint_wait_s = 0.0

    def forget_others(self, uids: Collection[str]) -> None:
        """Only these pods are still there."""
        for memory in (self.blocked, self.denied, self.refused):
            for uid in memory.keys() - uids:
                memory.pop(uid)

    def evict(self, step: Evict, labels: Mapping[str, str]) -> None:
        """Evict it, as the PodDisruptionBudgets allow. By the UID no pod of the same name is meant.

        RefusedError, UnreachableError where nobody can tell whether it is carried out.
        """
        pod = step.pod
        body = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": pod.name, "namespace": pod.namespace, "labels": OURS},
            "deleteOptions": {"preconditions": {"uid": pod.uid}},
        }
        try:
            if self._in_steps:
                # A dry run is answered as the eviction would be. Another agent may use up the budget in between.
                ask(self._api, "POST", f"{path_of(pod)}/eviction?dryRun=All", body)
                self._end(step)
            else:
                ask(self._api, "POST", f"{path_of(pod)}/eviction", body)
        except RefusedError as refused:
            if why := self._budgets_word(pod, labels, refused):
                self.in_vain(pod.uid)
                self.denied.pop(pod.uid, None)
                self.blocked[pod.uid] = printable(why)[:_MOST_CHARS]
            else:
                self.blocked.pop(pod.uid, None)
                self._deny(pod, refused)
        except UnreachableError as silence:
            self._deny(pod, silence)
        else:
            self._left(step)

    def delete(self, step: Delete) -> None:
        """Delete it past its budget, with its own grace period, if configured. Errors as of ``evict``."""
        try:
            self._end(step)
        except (RefusedError, UnreachableError) as error:
            self._deny(step.pod, error)
        else:
            self._left(step)

    def in_vain(self, uid: str) -> None:
        """A request about this pod was in vain just now: the others go first."""
        self.refused.pop(uid, None)
        self.refused[uid] = None

    def _budgets_word(self, pod: Pod, labels: Mapping[str, str], refused: RefusedError) -> str:
        """Why budgets refuse; empty if none did: a busy or broken server answers alike, and has asked no budget. That
        must never lead to a deletion."""
        if refused.status == HTTPStatus.TOO_MANY_REQUESTS and "DisruptionBudget" in refused.causes:
            return refused.sentence
        two = "more than one PodDisruptionBudget" in refused.sentence
        if refused.status == HTTPStatus.INTERNAL_SERVER_ERROR and two:
            return f"{refused.sentence} {self._budgets(pod, labels)}".strip()
        return ""

    def _deny(self, pod: Pod, error: RefusedError | UnreachableError) -> None:
        """Remember why. A later round asks again, and the pods behind it may leave meanwhile."""
        if isinstance(error, RefusedError) and error.status in _OVER:
            self.denied.pop(pod.uid, None)
            return
        self.in_vain(pod.uid)
        self.denied[pod.uid] = printable(str(error))[:_MOST_CHARS]
        if isinstance(error, UnreachableError) or error.status not in _NO:
            raise error

    def _end(self, step: Evict | Delete) -> None:
        pod = step.pod
        if self._in_steps:
            # The Eviction API sets it itself: with it a Job's podFailurePolicy doesn't count the pod as failed.
            condition = {
                "type": DISRUPTED,
                "status": "True",
                "reason": "DeletionByGpuHealthAgent",
                "message": step.cause.why,
                "lastTransitionTime": rfc3339(self._wall(), "seconds"),
            }
            body = {"metadata": {"uid": pod.uid}, "status": {"conditions": [condition]}}
            ask(self._api, "PATCH", f"{path_of(pod)}/status", body, STRATEGIC_PATCH)
        ask(self._api, "DELETE", path_of(pod), {"preconditions": {"uid": pod.uid}})

    def _left(self, step: Evict | Delete) -> None:
        pod = step.pod
        self.moved[pod.uid] = pod, step.cause
        for memory in (self.blocked, self.denied, self.refused):
            memory.pop(pod.uid, None)
        if pod.checkpoint:
            self.checkpoints[step.checkpoint] += 1
            self.checkpoint_wait_s += pod.asked_s or 0

    def _budgets(self, pod: Pod, labels: Mapping[str, str]) -> str:
        """The names of the budgets over a pod, as far as they may be read."""
        try:
            path = f"/apis/policy/v1/namespaces/{quote(pod.namespace)}/poddisruptionbudgets"
            found = ask(self._api, "GET", path)["items"]
            names = [b["metadata"]["name"] for b in found if _selects((b.get("spec") or {}).get("selector"), labels)]
        except (RefusedError, UnreachableError, KeyError, TypeError, AttributeError):
            return ""  # a name is worth no trouble
        return f"({', '.join(sorted(names))})" if names else ""


def path_of(pod: Pod) -> str:
    return f"/api/v1/namespaces/{quote(pod.namespace, safe='')}/pods/{quote(pod.name, safe='')}"


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
