"""The fences of one node: a DeviceTaintRule for each device that new pods are kept off."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from agent.actions.api import MERGE_PATCH, Api, ask
from agent.model.devices import DELETES, KEEPS_OFF, TRIED, Device, Fence
from agent.model.errors import RefusedError
from agent.model.names import FENCE_RULE, GPUS_ANNOTATION, HARD_TAINT, MANAGED_BY_LABEL, NODE_UID_LABEL
from agent.model.steps import LiftFence, SetFence
from agent.model.text import printable

RULES = "/apis/resource.k8s.io/v1/devicetaintrules"
_REFUSED_S = 600.0  # for so long none is asked for again
_RUNNING = "EvictionInProgress"
_OURS = "gpu-health-agent"


class Fences:
    """As they were last listed. They are named after node and device, so the next life finds them."""

    def __init__(self, api: Api, node: str, clock: Callable[[], float]) -> None:
        self._api, self._node, self._clock = api, node, clock
        self._seen: dict[str, tuple[float, str]] = {}  # rule's UID → since when, and what an eviction would hit
        self._refused, self._refused_at = "", float("-inf")
        self._all = True  # one without our Node's UID is found in a life's first list, and wherever a name is taken
        self._listed = False  # whether the last list was one of all
        self._unread = ""  # why they could not be listed
        self.there: tuple[Fence, ...] | None = None  # None: not known in this life

    @property
    def trouble(self) -> str:
        """Why none can be set; empty if it may be tried."""
        lately = self._clock() - self._refused_at < _REFUSED_S
        return self._unread or (self._refused if lately else "")

    def look(self, node_uid: str) -> None:
        """RefusedError of a moment's trouble, UnreachableError. One who may not list them knows what he knew."""
        selector = "" if self._all else f"?labelSelector={quote(f'{NODE_UID_LABEL}={node_uid}', safe='')}"
        try:
            items = ask(self._api, "GET", f"{RULES}{selector}")["items"]
        except RefusedError as refused:
            if refused.passes:
                said = f"fences could not be listed: {printable(str(refused))[:200]}"
                raise RefusedError(refused.status, said, wait_s=refused.wait_s) from refused
            why = printable(str(refused))[:200]
            if refused.status == HTTPStatus.NOT_FOUND:
                why, self.there = "it serves no DeviceTaintRule, as Kubernetes 1.37 does", ()
            self._unread = f"the API server: {why}"
            return
        found = [fence for item in items if (fence := self._fence(item, node_uid))]
        self._listed = self._all
        self._all = any(_of_node(item) != node_uid for item in items if own(item, self._node))
        self._unread, self.there = "", tuple(found)
        self._seen = {fence.uid: self._seen[fence.uid] for fence in found}

    def _fence(self, item: Mapping[str, Any], node_uid: str) -> Fence | None:
        """None for a rule that isn't this node's and ours."""
        rule = own(item, self._node)
        if rule is None:
            return None
        uid, effect = str(item["metadata"].get("uid")), str(item["spec"]["taint"].get("effect"))
        since, said = self._seen.get(uid, (self._clock(), ""))
        for one in (item.get("status") or {}).get("conditions") or () if effect == TRIED else ():
            if one.get("type") == _RUNNING:
                said = printable(str(one.get("message", "")).partition(" This information")[0])[:200]
        self._seen[uid] = since, said
        gpu = str((item["metadata"].get("annotations") or {}).get(GPUS_ANNOTATION, ""))
        return Fence(rule, gpu, effect, uid, said, int(self._clock() - since), _of_node(item) not in ("", node_uid))

    def set(self, step: SetFence, node_uid: str) -> None:
        """RefusedError, UnreachableError."""
        name = rule_name(self._node, step.device)
        try:
            if step.uid:  # of another rule of this name the API server answers that it is in conflict
                taint = {"key": HARD_TAINT, "effect": DELETES if step.deletes else KEEPS_OFF}
                body = {"metadata": {"uid": step.uid}, "spec": {"taint": taint}}
                ask(self._api, "PATCH", f"{RULES}/{quote(name)}", body, MERGE_PATCH)
            else:
                ask(self._api, "POST", RULES, self._rule(name, step, node_uid))
        except RefusedError as refused:
            taken = refused.status == HTTPStatus.CONFLICT and not step.uid
            overtaken = step.uid and refused.status in (HTTPStatus.CONFLICT, HTTPStatus.NOT_FOUND)
            overtaken, self._all = overtaken or (taken and not self._listed), self._all or taken  # by whom is seen next
            if not (overtaken or refused.passes or step.deletes):
                self._refused_at = self._clock()
                self._refused = f"a rule for device {step.device.name} was refused: {printable(str(refused))[:200]}"
            raise

    def _rule(self, name: str, step: SetFence, node_uid: str) -> dict[str, Any]:
        """One that goes with its Node, and whose taint has no effect yet."""
        device = step.device
        selector = {"driver": device.driver, "pool": device.pool, "device": device.name}
        owner = {"apiVersion": "v1", "kind": "Node", "name": self._node, "uid": node_uid}
        metadata = {
            "name": name,
            "labels": {MANAGED_BY_LABEL: _OURS, NODE_UID_LABEL: node_uid},
            "annotations": {GPUS_ANNOTATION: step.gpu},
            "ownerReferences": [owner],
        }
        kind = {"apiVersion": "resource.k8s.io/v1", "kind": "DeviceTaintRule"}
        return {
            **kind,
            "metadata": metadata,
            "spec": {"deviceSelector": selector, "taint": {"key": HARD_TAINT, "effect": TRIED}},
        }

    def lift(self, step: LiftFence) -> None:
        """RefusedError, UnreachableError."""
        lift(self._api, rule_name(self._node, step.device), step.uid)


def _of_node(item: Mapping[str, Any]) -> str:
    """UID of its Node; empty for one that an earlier version set."""
    return str((item["metadata"].get("labels") or {}).get(NODE_UID_LABEL, ""))


def rule_name(node: str, device: Device) -> str:
    return FENCE_RULE.format(node=node, driver=device.driver, device=device.name)


def lift(api: Api, name: str, uid: str) -> None:
    """Remove a rule. RefusedError, UnreachableError."""
    try:
        ask(api, "DELETE", f"{RULES}/{quote(name)}", {"preconditions": {"uid": uid}})
    except RefusedError as refused:
        if refused.status != HTTPStatus.NOT_FOUND:
            raise


def own(item: Mapping[str, Any], node: str | None) -> Device | None:
    """The device of a rule of ours, on this node or on any; None for another's."""
    selector = item["spec"].get("deviceSelector") or {}
    device = Device(*(str(selector.get(key, "")) for key in ("driver", "pool", "device")))
    ours = item["metadata"]["name"] == rule_name(device.pool, device) and item["spec"]["taint"]["key"] == HARD_TAINT
    return device if ours and node in (None, device.pool) else None
