"""The node's pods: what a drain must know of each, and the question whether it saved its work."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from agent.actions.api import MERGE_PATCH, Api, ask
from agent.actions.checkpoint import ANSWER_S, Calls, declared
from agent.actions.claims import Claims, unwell
from agent.actions.controllers import controller, told, workload
from agent.actions.eviction import Evictions, path_of
from agent.actions.grace import is_over, leaves_s
from agent.actions.job_pods import JobPod, job_pods
from agent.actions.leases import Clock
from agent.actions.volumes import Volumes
from agent.config.settings import Config
from agent.model.devices import Device
from agent.model.errors import RefusedError, UnreachableError
from agent.model.names import HARD_TAINT, KEEP_ANNOTATION, NODE_UID_LABEL, REQUESTED_ANNOTATION, SAVED_ANNOTATION
from agent.model.neighbours import NODE_SET, SLURM_BUSY, SLURM_STATE
from agent.model.ownership import OPERAND_ON, OPERANDS
from agent.model.steps import Evict
from agent.model.text import printable, rfc3339, unix_s
from agent.model.world import Pod

_KEEP = {KEEP_ANNOTATION: "true", "karpenter.sh/do-not-disrupt": "true"}
_AGENT = "agent"  # the container, in daemonset/
_OVER = ("Succeeded", "Failed")
_MIRROR = "kubernetes.io/config.mirror"
# HAMi and Volcano share a GPU among pods and write here which one each got; the kubelet may name another.
_SHARING = ("hami.io/", "volcano.sh/")
_BY_INDEX = "volcano.sh/gpu-index"
_UUID = re.compile(r"GPU-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_UNREADABLE = (KeyError, TypeError, ValueError, AttributeError, OverflowError)
_AHEAD_S = 60.0  # by so much a pod's clock may be ahead of ours


class Pods:
    """The pods of one node, as last listed. Every write is bound to the pod's UID."""

    def __init__(
        self, api: Api, node: str, config: Config, clock: Clock, wall: Clock, answer_s: float = ANSWER_S
    ) -> None:
        self._api, self._node, self._config, self._clock, self._wall = api, node, config, clock, wall
        self._raw: dict[str, dict[str, Any]] = {}  # by UID
        self._asked: dict[str, tuple[int, float]] = {}  # UID → for which drain, and since when by our own clock
        self._annotated: dict[str, int] = {}  # UID → for which drain its annotation was written
        self._unwritten: dict[str, str] = {}  # UID → why that could not be written
        self._going: dict[str, float] = {}  # UID → when it was first seen to terminate
        self._node_uid, self._told_at = "", 0.0
        self._ours: tuple[Pod, ...] = ()
        self._sizes: dict[str, int] = {}
        self._draining = False
        self.returns: Counter[str] = Counter()
        self.calls = Calls(answer_s)
        self.evictions = Evictions(api, config.drain, wall)
        self.volumes = Volumes(api, node)
        self._claims = Claims(api)

    def look(
        self,
        draining: bool,
        node_uid: str,
        hostname: str,
        fenced: frozenset[Device] | None = None,
        told_at: float = 0.0,
    ) -> tuple[Pod, ...]:
        """Every pod of the node whose object has this UID; ``fenced``: the devices that are, where others of it are in
        service; ``told_at``: the latest time that the API server told. RefusedError, UnreachableError.
        """
        self._told_at = told_at
        self.volumes.names = frozenset({self._node, hostname})
        if not draining:
            self.forget()
        known = set(self._raw)
        self._raw = {str(item["metadata"].get("uid")): item for item in self._items()}
        going = (uid for uid, raw in self._raw.items() if raw["metadata"].get("deletionTimestamp"))
        self._going = {uid: self._going.get(uid, self._clock()) for uid in going}
        self._node_uid = node_uid
        pods = tuple(self._pod(raw) for raw in self._raw.values())
        if self._config.fences or fenced is not None:
            pods = tuple(replace(pod, devices=self._devices(pod)) for pod in pods)
            self._claims.forget_others(self._raw.keys())
        # Taint and fences keep others away: what is new tolerates them, and came back.
        back = [pod for pod in pods if pod.uid not in known and _kept_off(pod, fenced)]
        for name, size in Counter(pod.workload for pod in pods).items():
            fresh = sum(pod.workload == name for pod in back)
            if self._draining and fresh:
                self.returns[name] += -(-fresh // max(size, self._sizes.get(name, 1)))
            self._sizes[name] = max(size, self._sizes.get(name, 1))
        self._draining = draining
        self._ours = tuple(pod for pod in pods if pod.ours)  # a label alone makes no pod a Job's of ours
        self.evictions.forget_others(self._raw.keys())
        self.calls.forget_others(self._raw.keys())
        self.volumes.forget_others(self._raw.keys())
        for memory in (self._asked, self._annotated, self._unwritten):
            for uid in memory.keys() - self._raw.keys():
                del memory[uid]
        return pods

    def forget(self) -> None:
        """The drain is over."""
        self._raw, self._ours, self._sizes, self._draining = {}, (), {}, False
        self.returns = Counter()
        self.evictions.forget_others(())
        self.evictions.moved.clear()

    def of_jobs(self) -> dict[str, JobPod]:
        """By the name of their Job."""
        return job_pods((self._raw[pod.uid] for pod in self._ours), {pod.uid for pod in self._ours if pod.stuck})

    def workloads(self) -> Mapping[str, Pod]:
        """The pods of this node that can be read, by UID."""
        found = (self._pod(item) for item in self._items())
        return {pod.uid: pod for pod in found if not pod.unread}

    def running(self) -> frozenset[str]:
        """The UIDs of this node's pods that have not ended. The agent may have ended before its pod has."""
        return frozenset(str(item["metadata"].get("uid")) for item in self._items() if not _ended(item))

    def evict(self, step: Evict) -> None:
        self.evictions.evict(step, self._raw[step.pod.uid]["metadata"].get("labels") or {})

    def ask_checkpoint(self, pod: Pod, drain: int) -> None:
        """Ask it in the way that it declared, and write the annotation that says since when; wait for no answer.

        ``drain`` is when that began, Unix seconds: nothing that was asked or answered before counts. RefusedError,
        UnreachableError: the annotation could not be written. The pod is asked all the same, and its time runs.
        """
        raw, now = self._raw[pod.uid], self._wall()
        annotations = raw["metadata"].get("annotations") or {}
        requested = unix_s(annotations.get(REQUESTED_ANNOTATION))
        # Whoever owns the pod may write any time there. It counts where an earlier life of ours may have written it.
        asked_s = now - requested if requested is not None and drain <= requested <= now else None
        if self._asked.get(pod.uid, (None,))[0] != drain:
            self._asked[pod.uid] = drain, self._clock() - (asked_s or 0.0)
            self.calls.forget(pod.uid)
        wish = declared(annotations)
        if wish.way == "http" and not raw["spec"].get("hostNetwork"):
            self.calls.ask(pod.uid, str((raw.get("status") or {}).get("podIP") or ""), wish.port, wish.path)
        if asked_s is None and self._annotated.get(pod.uid) != drain:
            self._annotate(pod, drain)

    def _annotate(self, pod: Pod, drain: int) -> None:
        now = rfc3339(self._wall(), "milliseconds")
        body = {"metadata": {"uid": pod.uid, "annotations": {REQUESTED_ANNOTATION: now}}}
        try:
            ask(self._api, "PATCH", path_of(pod), body, MERGE_PATCH)
        except (RefusedError, UnreachableError) as error:
            if isinstance(error, RefusedError) and error.status in (HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT):
                return
            self.evictions.in_vain(pod.uid)
            self._unwritten[pod.uid] = (
                f"the annotation that asks it could not be written ({printable(str(error))[:300]})"
            )
            raise
        self.evictions.refused.pop(pod.uid, None)
        self._unwritten.pop(pod.uid, None)
        self._annotated[pod.uid] = drain

    def _items(self) -> list[dict[str, Any]]:
        path = f"/api/v1/pods?fieldSelector={quote(f'spec.nodeName={self._node}', safe='')}"
        return list(ask(self._api, "GET", path)["items"])

    def _pod(self, item: dict[str, Any]) -> Pod:
        """A pod that can't be read may be anything: it counts as running on any GPU, and a person must look at it."""
        try:
            return self._read(item)
        except _UNREADABLE as error:
            metadata = item["metadata"]
            why = printable(f"{type(error).__name__}: {error}")[:100]
            return Pod(str(metadata.get("namespace")), metadata["name"], str(metadata.get("uid")), gpu=True, unread=why)

    def _read(self, item: dict[str, Any]) -> Pod:
        metadata, spec, status = item["metadata"], item.get("spec") or {}, item.get("status") or {}
        annotations, labels = metadata.get("annotations") or {}, metadata.get("labels") or {}
        if not all(isinstance(metadata[key], str) for key in ("namespace", "uid")):
            raise TypeError("its namespace or UID is no text")
        wish, (saved, why) = declared(annotations), self.calls.answer(metadata["uid"])
        why, asked = self._unwritten.get(metadata["uid"]) or why, self._asked.get(metadata["uid"])
        if wish.way == "http" and spec.get("hostNetwork"):
            why = "it uses the node's network, so its port may be another's"
        owner = controller(metadata)
        ours = NODE_UID_LABEL in labels and metadata["namespace"] == self._config.budget.namespace
        return Pod(
            namespace=metadata["namespace"],
            name=metadata["name"],
            uid=metadata["uid"],
            owner=owner.kind if owner else "",
            workload=workload(metadata),
            controller=told(owner),
            gpu=self._requests(spec) or bool(spec.get("resourceClaims")),
            claims=_claims(annotations),
            static=_MIRROR in annotations,
            finished=status.get("phase") in _OVER,
            terminating=metadata["uid"] in self._going,
            stuck=self._is_stuck(metadata, spec),
            leaves_s=int(leaves_s(metadata, spec)),
            priority=int(spec.get("priority") or 0),
            tolerates=any(_tolerates(one) for one in spec.get("tolerations") or ()),
            protected=any(annotations.get(key) == value for key, value in _KEEP.items()),
            pinned=self.volumes.pins(metadata, spec),
            checkpoint=wish.way,
            checkpoint_timeout_s=wish.timeout_s,
            checkpoint_said=wish.said or why,
            asked_for=asked[0] if asked else None,
            asked_s=int(self._clock() - asked[1]) if asked else None,
            operand=_operand(spec) if owner is not None and owner.kind == "DaemonSet" else "",
            slurm_busy=owner is not None and owner.kind == NODE_SET and _slurm_busy(status),
            ours=ours,
            unwell=unwell(status),
            former=ours and labels[NODE_UID_LABEL] != self._node_uid,
            saved=saved or (wish.way == "annotation" and _answered(annotations, self._wall())),
        )

    def _devices(self, pod: Pod) -> frozenset[Device] | None:
        """What its claims were given, where it has GPUs by these alone."""
        if pod.unread:
            return None
        raw = self._raw[pod.uid]
        plugged = self._requests(raw.get("spec") or {}) or (raw.get("status") or {}).get("extendedResourceClaimStatus")
        return None if plugged else self._claims.devices(raw)

    def _requests(self, spec: Mapping[str, Any]) -> bool:
        """Whether it requests a GPU as a device plugin offers it."""
        containers = (*(spec.get("containers") or ()), *(spec.get("initContainers") or ()))
        names = (name for one in containers for name in ((one.get("resources") or {}).get("limits") or {}))
        return any(name.startswith(self._config.drain.resource_prefixes) for name in names)

    def _is_stuck(self, metadata: Mapping[str, Any], spec: Mapping[str, Any]) -> bool:
        """Whether its time is over, since we first saw it terminate or the API server was asked to end it."""
        since = self._going.get(metadata["uid"])
        now = min(self._told_at, self._wall())
        return since is not None and is_over(metadata, spec, self._clock() - since, now)


def _kept_off(pod: Pod, fenced: frozenset[Device] | None) -> bool:
    return fenced is None or pod.devices is None or bool(pod.devices & fenced)


def _operand(spec: Mapping[str, Any]) -> str:
    """The label of an operand by which a pod was placed, and without which it leaves."""
    selector = spec.get("nodeSelector") or {}
    return next((label for label in OPERANDS if selector.get(label) == OPERAND_ON), "")


def _slurm_busy(status: Mapping[str, Any]) -> bool:
    """Whether jobs run on Slinky's pod, or may come: by its conditions, as its operator reads them."""
    true = {str(one["type"]) for one in status.get("conditions") or () if one.get("status") == "True"}
    true = {state.removeprefix(SLURM_STATE) for state in true if state.startswith(SLURM_STATE)}
    return "Drain" not in true or "Undrain" in true or not true.isdisjoint(SLURM_BUSY)


def _ended(item: Mapping[str, Any]) -> bool:
    """Whether a pod has ended, or its container of the agent has for good; one that can't be read has not.

    A pod that the kubelet evicted, or that failed at its start, stays in the API server until somebody removes it.
    """
    try:
        status, policy = item.get("status") or {}, (item.get("spec") or {}).get("restartPolicy")
        agents = [one for one in status.get("containerStatuses") or () if one["name"] == _AGENT]
        codes = [ended.get("exitCode") for one in agents if (ended := (one.get("state") or {}).get("terminated"))]
        for_good = policy == "Never" or (policy == "OnFailure" and codes == [0])
        return status.get("phase") in _OVER or bool(codes and for_good)
    except _UNREADABLE:
        return False


def _claims(annotations: Mapping[str, str]) -> frozenset[str] | None:
    """GPUs that others' annotations name. Tenants can write them: they add to what a pod holds, and take nothing."""
    if _BY_INDEX in annotations:
        return None
    return frozenset(
        uuid for key, text in annotations.items() if key.startswith(_SHARING) for uuid in _UUID.findall(text)
    )


def _tolerates(toleration: Mapping[str, Any]) -> bool:
    key, effect = toleration.get("key") or HARD_TAINT, toleration.get("effect") or "NoSchedule"
    return bool(key == HARD_TAINT and effect == "NoSchedule")


def _answered(annotations: Mapping[str, str], now: float) -> bool:
    """Saved after it was asked, and not in the future: such a time would answer every later question as well."""
    requested, saved = unix_s(annotations.get(REQUESTED_ANNOTATION)), unix_s(annotations.get(SAVED_ANNOTATION))
    return requested is not None and saved is not None and requested <= saved <= now + _AHEAD_S
