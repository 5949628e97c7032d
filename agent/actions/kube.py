"""The client of the cluster: it looks at the world, and does each step as one write."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any, assert_never

from agent.actions.admissions import Admissions
from agent.actions.answers import may_arrive, sensible
from agent.actions.api import JSON, Api, condition_of, taint_of, written_at
from agent.actions.checkpoint import ANSWER_S
from agent.actions.event_object import Events
from agent.actions.fences import Fences
from agent.actions.jobs import Jobs
from agent.actions.leases import Clock
from agent.actions.offered import offered
from agent.actions.own_node import OwnNode
from agent.actions.permits import Permits
from agent.actions.pods import Pods
from agent.actions.pool import Pool
from agent.actions.rights import needed
from agent.actions.slices import Slices
from agent.actions.trial import Trial
from agent.actions.webhook import Receiver
from agent.config.settings import Config
from agent.model.cluster_client import Annotations, Labels
from agent.model.errors import RefusedError, UnreachableError
from agent.model.names import (
    DISMISS_ANNOTATION,
    DRILL_ANNOTATION,
    FAULTS_ANNOTATION,
    HARD_TAINT,
    HISTORY_ANNOTATION,
    SOFT_TAINT,
    UNHEALTHY,
)
from agent.model.neighbours import CORDON_REASON
from agent.model.ownership import opted_out
from agent.model.steps import (
    Announce,
    AskCheckpoint,
    Delete,
    Diagnose,
    Evict,
    GivePermit,
    LiftFence,
    Post,
    Report,
    Retaint,
    SetFence,
    StartJob,
    Step,
    TakePermit,
    Wait,
)
from agent.model.text import fault_ids
from agent.model.world import About, Job, Permit, PermitKind, Pod, World

_WAITS_S = 120.0  # whoever looked closely so lately, and holds nothing, waits


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
        self.asked_at = 0.0
        self._node, self._config, self._clock, self._wall = node, config, clock, wall
        self._api = self._declared(api)
        self._own = OwnNode(self._api, node, clock, wall)
        self._permits = Permits(self._api, config.budget, clock, wall)
        self._pods = Pods(self._api, node, config, clock, wall, answer_s)
        self._jobs = Jobs(self._api, node, config, clock)
        self._slices = Slices(self._api, node, clock)
        self._fences = Fences(self._api, node, clock)
        self._admissions = Admissions(self._api, node, config.policy.refused_window_s, clock)
        self.lacks = Trial(self._api, node, config, wall).lacks
        self._receiver = Receiver(config.webhook, node, clock, wall)
        self._events = Events(self._api, node, clock, wall)
        self._closely_at = float("-inf")
        self._vainly_from: float | None = None  # since when our taint has been asked for in vain
        self._known: dict[str, About] = {}  # this node's pods, by UID

    def _declared(self, api: Api) -> Api:
        """Counts each request, sends none that rights.py lacks, and passes on no answer that makes no sense."""

        def request(
            method: str, path: str, body: Any = None, content_type: str = JSON, accept: str = JSON
        ) -> tuple[int, Any]:
            if (declared := needed(method, path, self._config.budget.namespace)) is None:
                raise RefusedError(HTTPStatus.FORBIDDEN, f"{method} {path} is no right that the agent declares")
            right, verb = declared
            watches = verb == "watch"
            self.requests["WATCH" if watches else method] += 1  # each is counted by one thread alone
            self.asked_at = self.asked_at if watches else self._clock()  # a watch is another thread's
            status, answer = api(method, path, body, content_type, accept)
            # A dry run's object has no version, and nobody reads it.
            if HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES and not (watches or "dryRun" in path):
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

    def look(self, closely: bool, counts: bool = True) -> World:
        """Read the Node; ``closely`` also the pool's permits and, once our taint stands, the node's pods.

        ``counts``: and the pool itself, for whoever may take a permit. RefusedError, UnreachableError.
        """
        first = closely and self._clock() - self._closely_at >= _WAITS_S
        raw = self._own.read(afresh=self._permits.holding)
        metadata, spec, status = (raw.get(part) or {} for part in ("metadata", "spec", "status"))
        conditions = {c["type"]: condition_of(c) for c in status.get("conditions") or ()}
        taints = tuple(map(taint_of, spec.get("taints") or ()))
        soft = any(taint.key == HARD_TAINT and taint.effect == "PreferNoSchedule" for taint in taints)  # fences stand
        ill = closely or (UNHEALTHY in conditions and conditions[UNHEALTHY].status == "True")
        if (by_device := soft or self._config.fences) and (soft or ill or self._fences.there != ()):
            self._fences.look(metadata["uid"])
        if by_device:
            self._slices.look(soon=ill)
        permits: tuple[Permit, ...] | None = None
        pods: tuple[Pod, ...] | None = None
        jobs: tuple[Job, ...] | None = None
        pool, paused, clock_s = Pool(), "", 0
        self._vainly_from = self._vainly_from if closely else None  # else no taint of ours is wanted any more
        ours = {taint.key for taint in taints}
        if self._permits.due(self._own.holder, closely, not counts and ours.isdisjoint((HARD_TAINT, SOFT_TAINT))):
            permits = self._permits.look(self._own.holder, written_at(raw), first)
            pool, paused = self._permits.pool(self._own.holder, permits, counts), self._permits.paused()
            clock_s = int(self._clock())
            tainted, idle = HARD_TAINT in ours, SOFT_TAINT in ours and self._config.repair.reset_when_idle
            drains = any(permit.holder == self._own.holder and permit.kind is PermitKind.DRAINING for permit in permits)
            if tainted or idle or drains:
                hostname = (metadata.get("labels") or {}).get("kubernetes.io/hostname", self._node)
                fenced = frozenset(fence.device for fence in self._fences.there or ()) if soft else None
                pods = self._pods.look(tainted, metadata["uid"], hostname, fenced, self._permits.told_at)
                if tainted and self._jobs.configured:
                    jobs = self._jobs.look(metadata["uid"], self._pods.of_jobs())
            else:
                self._pods.forget()
        self._closely_at = self._clock() if closely and permits is not None else float("-inf")
        labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
        dismissed, unread = fault_ids(annotations.get(DISMISS_ANNOTATION, ""))
        keys, evictions = {pod.uid: pod.key for pod in pods or ()}, self._pods.evictions
        return World(
            node=self._node,
            uid=metadata["uid"],
            managed=not opted_out(labels),
            taints=taints,
            cordoned=spec.get("unschedulable") is True,
            cordon_reason=annotations.get(CORDON_REASON, ""),
            labels=labels,
            conditions=conditions,
            dismissed=dismissed,
            unread=unread,
            stored=annotations.get(FAULTS_ANNOTATION),
            history=annotations.get(HISTORY_ANNOTATION),
            drill=annotations.get(DRILL_ANNOTATION),
            permits=permits,
            pending=self._permits.pending,
            pool_size=pool.size,
            out=pool.out,
            aged=permits is not None and self._permits.aged,
            clock_s=clock_s,
            paused=paused,
            pods=pods,
            jobs=jobs,
            blocked={keys[uid]: why for uid, why in evictions.blocked.items() if uid in keys},
            denied={keys[uid]: why for uid, why in evictions.denied.items() if uid in keys},
            refused=tuple(keys[uid] for uid in evictions.refused if uid in keys),
            untainted_s=0 if self._vainly_from is None else int(self._clock() - self._vainly_from),
            returns=dict(self._pods.returns),
            moved=tuple(evictions.moved.values()),
            announced=self._events.sent,
            posted=self._receiver.taken,
            unposted=self._receiver.trouble,
            offer=offered(labels, status, self._config.drain.resource_prefixes, self._slices, self._admissions),
            devices=self._slices.devices if by_device else (),
            fences=self._fences.there or (),
            unfenced=self._fences.trouble or (self._slices.trouble if by_device and not self._slices.devices else ""),
            unlisted=self._fences.trouble if soft and self._fences.there is None else "",
        )

    def words(self) -> Iterator[tuple[Labels, Annotations]]:
        """They come by a watch on our Node. RefusedError, UnreachableError."""
        return self._own.words()

    def heard(self, version: str | None) -> None:
        """What such a watch says: ``OwnNode.heard``."""
        self._own.heard(version)

    def workloads(self) -> Mapping[str, str]:
        """Pod UID → what controls it, for the pods of this node; RefusedError, UnreachableError."""
        found = self._pods.workloads()
        self._known = {uid: pod.itself for uid, pod in found.items()}
        return {uid: pod.workload for uid, pod in found.items()}

    def running(self) -> frozenset[str]:
        """The UIDs of this node's pods that have not ended; RefusedError, UnreachableError."""
        return self._pods.running()

    def succeeds(self) -> None:
        """What the node holds is another life's from now on."""
        self._permits.succeeds()

    def renew(self) -> None:
        """The next close look reads the permits and the pool whole, as whoever takes a permit must."""
        self._permits.renew()

    def do(self, step: Step) -> bool:
        """One step, one write. RefusedError 409 means look again; nothing is retried here.

        False: an eviction that was refused, and the next look says why; an Event that nobody takes just now.
        """
        withdraws = isinstance(step, Retaint) and any(taint.withdraws for taint in step.taints)
        try:
            accepted = self._do(step)
        except (RefusedError, UnreachableError) as error:
            ends = isinstance(step, Evict | Delete | StartJob) or (isinstance(step, SetFence) and step.deletes)
            if (withdraws or ends) and may_arrive(error):
                self._permits.unanswered()
            if isinstance(step, TakePermit) and may_arrive(error):
                self._permits.unheard()
            overtaken = isinstance(error, RefusedError) and error.status == HTTPStatus.CONFLICT
            if withdraws and not overtaken and self._vainly_from is None:
                self._vainly_from = self._clock()
            raise
        if withdraws:
            self._vainly_from = None
        return accepted

    def _do(self, step: Step) -> bool:
        match step:
            case Report():
                self._own.report(step)
            case Retaint(taints):
                if any(taint.withdraws for taint in taints):
                    self._permits.require(PermitKind.WITHDRAWN)
                self._own.retaint(step)
            case TakePermit(kind, index, early=early):
                if not early:
                    self._own.confirm()
                self._permits.take(kind, index, self._own.holder, early)
            case GivePermit(kind, index):
                self._permits.give(kind, index, self._own.holder)
            case AskCheckpoint(pod, drain):
                self._permits.require(PermitKind.DRAINING)
                self._pods.ask_checkpoint(pod, drain)
            case Evict():
                self._permits.require(PermitKind.DRAINING)
                self._pods.evict(step)
                return step.pod.uid not in self._pods.evictions.refused
            case Delete():
                self._permits.require(PermitKind.DRAINING)
                self._pods.evictions.delete(step)
                return step.pod.uid not in self._pods.evictions.refused
            case SetFence():
                if step.uid:  # else it has no effect
                    self._permits.require(PermitKind.DRAINING if step.deletes else PermitKind.WITHDRAWN)
                self._fences.set(step, self._own.raw["metadata"]["uid"])
                self._pods.evictions.moved |= {pod.uid: (pod, why) for pod, why in step.deletes}
            case LiftFence():
                self._fences.lift(step)
            case StartJob():
                self._permits.require(PermitKind.WITHDRAWN)
                self._jobs.start(step, self._own.raw["metadata"]["uid"])
            case Diagnose():
                raise RefusedError(HTTPStatus.NOT_FOUND, "whoever has no sources has no GPU diagnosed")
            case Announce():
                return self._events.send(step, self._known.get(step.pod))
            case Post():
                return self._receiver.post(step)
            case Wait():
                pass
            case _:
                assert_never(step)
        return True
