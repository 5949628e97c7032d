"""The client of the cluster: it looks at the world, and does each step as one write."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any, assert_never
from urllib.parse import quote

from agent.actions.answers import may_arrive, sensible, whole_node
from agent.actions.api import JSON, JSON_PATCH, METADATA, STRATEGIC_PATCH, Api, ask, condition_of, taint_of, written_at
from agent.actions.checkpoint import ANSWER_S
from agent.actions.event_object import event_of
from agent.actions.jobs import Jobs
from agent.actions.offered import offered
from agent.actions.permits import Clock, Permits
from agent.actions.pods import Pods
from agent.actions.pool import Pool
from agent.actions.rights import needed
from agent.config.settings import Config
from agent.model.cluster_client import Annotations, Labels
from agent.model.errors import RefusedError, UnreachableError
from agent.model.names import (
    DISMISS_ANNOTATION,
    DRILL_ANNOTATION,
    FAULTS_ANNOTATION,
    HARD_TAINT,
    MANAGED_LABEL,
    SOFT_TAINT,
)
from agent.model.ownership import own_taint
from agent.model.steps import (
    Announce,
    AskCheckpoint,
    Delete,
    Diagnose,
    Evict,
    GivePermit,
    Report,
    Retaint,
    StartJob,
    Step,
    TakePermit,
    Wait,
)
from agent.model.text import rfc3339
from agent.model.world import Condition, Job, Permit, PermitKind, Pod, World


class KubeClient:
    """Looks at the cluster and does one step at a time, for one node."""

    def __init__(
        self,
        api: Api,
        node: str,
        config: Config,
        clock: Clock = time.monotonic,
        answer_s: float = ANSWER_S,
        wall: Clock = time.time,
    ) -> None:
        """``answer_s``: how long a pod's port that is asked for a checkpoint may take, in seconds."""
        self.requests: Counter[str] = Counter()
        self._node, self._config, self._clock, self._wall = node, config, clock, wall
        self._api = self._declared(api)
        self._path = f"/api/v1/nodes/{quote(node, safe='')}"
        self._permits = Permits(self._api, config.budget, clock, wall)
        self._raw: dict[str, Any] = {}
        self._pods = Pods(self._api, node, config, clock, wall, answer_s)
        self._jobs = Jobs(self._api, node, config, wall)
        self._announced: frozenset[str] = frozenset()
        self._vainly_from: float | None = None  # since when our taint is asked for, and never comes
        self._pod_names: dict[str, tuple[str, str]] = {}  # UID → namespace and name

    def _declared(self, api: Api) -> Api:
        """Counts each request, and sends none that rights.py doesn't hold: its table is the whole truth. Of an answer
        nobody sees more than makes sense."""

        def request(
            method: str, path: str, body: Any = None, content_type: str = JSON, accept: str = JSON
        ) -> tuple[int, Any]:
            if (declared := needed(method, path, self._config.budget.namespace)) is None:
                raise RefusedError(HTTPStatus.FORBIDDEN, f"{method} {path} is no right that the agent declares")
            right, verb = declared
            self.requests["WATCH" if verb == "watch" else method] += 1  # each is counted by one thread alone
            status, answer = api(method, path, body, content_type, accept)
            if HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES and verb != "watch":
                sensible(answer, f"{method} {path}", right.resource, verb == "list", accept)
            return status, answer

        return request

    @property
    def checkpoints(self) -> tuple[Mapping[str, int], float]:
        """How the evicted pods' checkpoints ended, and the seconds that were waited for them."""
        return self._pods.evictions.checkpoints, self._pods.evictions.checkpoint_wait_s

    @property
    def asking(self) -> bool:
        """Whether a pod was asked for a checkpoint and the call has not ended: the next look has its answer."""
        return self._pods.calls.asking

    def look(self, closely: bool) -> World:
        """Read the Node; ``closely`` also the pool's permits and, once our taint stands, the node's pods.

        RefusedError, UnreachableError.
        """
        try:
            self._raw = whole_node(ask(self._api, "GET", self._path), f"GET {self._path}")
        except RefusedError as refused:
            if refused.status == HTTPStatus.NOT_FOUND:
                raise RefusedError(
                    HTTPStatus.NOT_FOUND, f"node {self._node} does not exist: check node, --node or NODE_NAME"
                ) from None
            raise
        metadata, spec, status = (self._raw.get(part) or {} for part in ("metadata", "spec", "status"))
        permits: tuple[Permit, ...] | None = None
        pods: tuple[Pod, ...] | None = None
        jobs: tuple[Job, ...] | None = None
        pool, paused, clock_s = Pool(), "", 0
        if closely:
            permits = self._permits.look(self._holder, written_at(self._raw))
            pool, paused = self._permits.pool(self._holder, permits), self._permits.paused()
            clock_s = int(self._clock())
            ours = {taint["key"] for taint in spec.get("taints") or ()}
            tainted, idle = HARD_TAINT in ours, SOFT_TAINT in ours and self._config.repair.reset_when_idle
            drains = any(permit.holder == self._holder and permit.kind is PermitKind.DRAINING for permit in permits)
            if tainted or idle or drains:
                hostname = (metadata.get("labels") or {}).get("kubernetes.io/hostname", self._node)
                pods = self._pods.look(tainted, metadata["uid"], hostname)
                if tainted and self._jobs.configured:
                    jobs = self._jobs.look(metadata["uid"], self._pods.ended())
            else:
                self._pods.forget()
        labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
        keys, evictions = {pod.uid: pod.key for pod in pods or ()}, self._pods.evictions
        return World(
            node=self._node,
            uid=metadata["uid"],
            managed=labels.get(MANAGED_LABEL) != "false",
            taints=tuple(map(taint_of, spec.get("taints") or ())),
            labels=labels,
            conditions={c["type"]: condition_of(c) for c in status.get("conditions") or ()},
            dismissed=frozenset(annotations.get(DISMISS_ANNOTATION, "").replace(",", " ").split()),
            stored=annotations.get(FAULTS_ANNOTATION),
            drill=annotations.get(DRILL_ANNOTATION),
            permits=permits,
            pool_size=pool.size,
            out=pool.out,
            clock_s=clock_s,
            paused=paused,
            pods=pods,
            jobs=jobs,
            blocked={keys[uid]: why for uid, why in evictions.blocked.items() if uid in keys},
            denied={keys[uid]: why for uid, why in evictions.denied.items() if uid in keys},
            refused=tuple(keys[uid] for uid in evictions.refused if uid in keys),
            untainted_s=0 if self._vainly_from is None else int(self._clock() - self._vainly_from),
            returns=dict(self._pods.returns),
            announced=self._announced,
            offer=offered(labels, status, self._config.drain.resource_prefixes),
        )

    def words(self) -> Iterator[tuple[Labels, Annotations]]:
        """By a watch on the one Node's metadata, as each kubelet has one: from the server's cache, and no list.

        RefusedError, UnreachableError. It begins with the Node as it is, so none is resumed.
        """
        one = f"fieldSelector=metadata.name%3D{quote(self._node, safe='')}"
        path = f"/api/v1/nodes?watch=true&allowWatchBookmarks=true&resourceVersion=0&{one}"
        for event in ask(self._api, "GET", path, accept=METADATA):
            told = event["object"]
            if event["type"] == "ERROR":
                raise RefusedError(int(told.get("code") or HTTPStatus.INTERNAL_SERVER_ERROR), str(told.get("message")))
            if event["type"] in ("ADDED", "MODIFIED"):
                yield told["metadata"].get("labels") or {}, told["metadata"].get("annotations") or {}

    def workloads(self) -> Mapping[str, str]:
        """Pod UID → what controls it, for the pods of this node; RefusedError, UnreachableError."""
        found = self._pods.workloads()
        self._pod_names = {uid: (pod.namespace, pod.name) for uid, pod in found.items()}
        return {uid: pod.workload for uid, pod in found.items()}

    def do(self, step: Step) -> None:
        """One step, one write. RefusedError 409 means look again; nothing is retried here."""
        withdraws = isinstance(step, Retaint) and any(taint.withdraws for taint in step.taints)
        try:
            self._do(step)
        except (RefusedError, UnreachableError) as error:
            if (withdraws or isinstance(step, Evict | Delete | StartJob)) and may_arrive(error):
                self._permits.unanswered()
            overtaken = isinstance(error, RefusedError) and error.status == HTTPStatus.CONFLICT
            if withdraws and not overtaken and self._vainly_from is None:
                self._vainly_from = self._clock()
            raise
        if withdraws:
            self._vainly_from = None

    def _do(self, step: Step) -> None:
        match step:
            case Report():
                self._report(step)
            case Retaint():
                self._retaint(step)
            case TakePermit(kind, index):
                self._permits.take(kind, index, self._holder)
            case GivePermit(kind, index):
                self._permits.give(kind, index, self._holder)
            case AskCheckpoint(pod, drain):
                self._permits.require(PermitKind.DRAINING)
                self._pods.ask_checkpoint(pod, drain)
            case Evict(pod, outcome):
                self._permits.require(PermitKind.DRAINING)
                self._pods.evict(pod, outcome)
            case Delete(pod, outcome):
                self._permits.require(PermitKind.DRAINING)
                self._pods.evictions.delete(pod, outcome)
            case StartJob():
                self._permits.require(PermitKind.WITHDRAWN)
                self._jobs.start(step, self._raw["metadata"]["uid"])
            case Diagnose():
                raise RefusedError(
                    HTTPStatus.NOT_FOUND, "whoever has no sources of its own can't have DCGM diagnose a GPU"
                )
            case Announce():
                self._announce(step)
            case Wait():
                pass
            case _:
                assert_never(step)

    @property
    def _holder(self) -> str:
        return f"{self._node}/{self._raw['metadata']['uid']}"

    def _report(self, step: Report) -> None:
        body: dict[str, Any] = {"metadata": {}}
        if step.labels:
            body["metadata"]["labels"] = dict(step.labels)
        if step.stored is not None:
            body["metadata"]["annotations"] = {FAULTS_ANNOTATION: step.stored}
        if step.conditions:
            body["status"] = {"conditions": [self._condition(c) for c in step.conditions]}
        # The status subresource takes conditions, labels and annotations in one write, and no spec.
        path = f"{self._path}/status"
        self._raw = whole_node(ask(self._api, "PATCH", path, body, STRATEGIC_PATCH), f"PATCH {path}")

    def _condition(self, condition: Condition) -> dict[str, Any]:
        now = rfc3339(self._wall(), "seconds")
        old: dict[str, Any] = next(
            (c for c in self._raw["status"].get("conditions") or () if c["type"] == condition.type), {}
        )
        # Repair controllers measure from the last flip: it must not move while the status stays.
        flipped = old.get("status") != condition.status
        return {
            "type": condition.type,
            "status": condition.status,
            "reason": condition.reason,
            "message": condition.message,
            "lastHeartbeatTime": now,
            "lastTransitionTime": now if flipped else old.get("lastTransitionTime", now),
        }

    def _retaint(self, step: Retaint) -> None:
        """JSON Patch with a test on the list last seen: others write the same list, and theirs must survive."""
        metadata, listed = self._raw["metadata"], self._raw["spec"].get("taints")
        if any(taint.withdraws for taint in step.taints):
            self._permits.require(PermitKind.WITHDRAWN)
        ours = [{"key": t.key, "effect": t.effect} | ({"value": t.value} if t.value else {}) for t in step.taints]
        wanted = [t for t in listed or () if not own_taint(taint_of(t))] + ours
        patch: list[dict[str, Any]] = [
            {"op": "test", "path": "/spec/taints", "value": listed}
            if listed
            else {"op": "test", "path": "/metadata/resourceVersion", "value": metadata["resourceVersion"]},
            {"op": "add", "path": "/spec/taints", "value": wanted}
            if wanted
            else {"op": "remove", "path": "/spec/taints"},
        ]
        for part, items in (("labels", step.labels), ("annotations", {FAULTS_ANNOTATION: step.stored})):
            known = metadata.get(part) or {}
            changes = {k: v for k, v in items.items() if (v is not None or k in known) and v != known.get(k)}
            if changes and not known:
                patch.append({"op": "add", "path": f"/metadata/{part}", "value": {}})
            for key, value in changes.items():
                path = f"/metadata/{part}/{key.replace('~', '~0').replace('/', '~1')}"
                patch.append(
                    {"op": "remove", "path": path} if value is None else {"op": "add", "path": path, "value": value}
                )
        self._raw = whole_node(ask(self._api, "PATCH", self._path, patch, JSON_PATCH), f"PATCH {self._path}")

    def _announce(self, step: Announce) -> None:
        namespace, event = event_of(step, self._node, self._pod_names.get(step.pod), rfc3339(self._wall(), "seconds"))
        try:
            ask(self._api, "POST", f"/api/v1/namespaces/{quote(namespace)}/events", event)
        except RefusedError as refused:
            # 409: told before a restart; a pod whose namespace ends takes no Events any more.
            if refused.status != HTTPStatus.CONFLICT and not step.pod:
                raise
        self._announced |= {step.name}
