"""What is written to the Node: the bodies of the two kinds of PATCH."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agent.actions.api import taint_of
from agent.model.names import FAULTS_ANNOTATION, HISTORY_ANNOTATION
from agent.model.neighbours import CORDON_REASON
from agent.model.ownership import own_taint
from agent.model.steps import Report, Retaint
from agent.model.world import Condition


def report_body(step: Report, node: Mapping[str, Any], now: str) -> dict[str, Any]:
    """A strategic merge patch of the status; ``node`` is the Node as last read, ``now`` RFC 3339.

    It names the version that was read: one that arrives after others have written meets another, and undoes nothing.
    """
    body: dict[str, Any] = {"metadata": {"resourceVersion": node["metadata"].get("resourceVersion")}}
    if step.labels:
        body["metadata"]["labels"] = dict(step.labels)
    if annotations := _annotations(step):
        body["metadata"]["annotations"] = annotations
    if step.conditions:
        known = {one["type"]: one for one in node["status"].get("conditions") or ()}
        body["status"] = {"conditions": [_condition(one, known.get(one.type, {}), now) for one in step.conditions]}
    return body


def _condition(condition: Condition, old: Mapping[str, Any], now: str) -> dict[str, Any]:
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


def retaint_patch(step: Retaint, node: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A JSON Patch with a test on the list last seen: others write the same list, and theirs must survive.

    And on each label that it changes: gpu-operator may just have begun an upgrade by the same ones.
    """
    metadata, listed = node["metadata"], node["spec"].get("taints")
    ours = [{"key": t.key, "effect": t.effect} | ({"value": t.value} if t.value else {}) for t in step.taints]
    wanted = [t for t in listed or () if not own_taint(taint_of(t))] + ours
    patch: list[dict[str, Any]] = [
        {"op": "test", "path": "/spec/taints", "value": listed}
        if listed
        else {"op": "test", "path": "/metadata/resourceVersion", "value": metadata["resourceVersion"]},
        {"op": "add", "path": "/spec/taints", "value": wanted} if wanted else {"op": "remove", "path": "/spec/taints"},
    ]
    annotations: dict[str, str | None] = {**_annotations(step)}
    if step.cordon is not None:  # what isn't there can't be tested: another may have cordoned it a moment ago
        patch.insert(0, {"op": "test", "path": "/metadata/resourceVersion", "value": metadata["resourceVersion"]})
        annotations[CORDON_REASON] = step.cordon or None
        if step.cordon:
            patch.append({"op": "add", "path": "/spec/unschedulable", "value": True})
        elif node["spec"].get("unschedulable"):
            patch.append({"op": "remove", "path": "/spec/unschedulable"})
    for part, items in (("labels", step.labels), ("annotations", annotations)):
        known = metadata.get(part) or {}
        changes = {k: v for k, v in items.items() if (v is not None or k in known) and v != known.get(k)}
        if changes and not known:
            patch.append({"op": "add", "path": f"/metadata/{part}", "value": {}})
        for key, value in changes.items():
            path = f"/metadata/{part}/{key.replace('~', '~0').replace('/', '~1')}"
            if part == "labels" and key in known:
                patch.append({"op": "test", "path": path, "value": known[key]})
            patch.append(
                {"op": "remove", "path": path} if value is None else {"op": "add", "path": path, "value": value}
            )
    return patch


def _annotations(step: Report | Retaint) -> dict[str, str]:
    texts = {FAULTS_ANNOTATION: step.stored, HISTORY_ANNOTATION: step.history}
    return {key: text for key, text in texts.items() if text is not None}
