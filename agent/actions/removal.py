"""Takes everything of ours off the cluster: taints, labels, conditions, annotations and permits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from agent.actions.answers import ask_node, paged, whole_node
from agent.actions.api import JSON_PATCH, MERGE_PATCH, STRATEGIC_PATCH, Api, ask, condition_of, taint_of
from agent.actions.fences import RULES, lift, own
from agent.actions.lease import holder, rewritten
from agent.actions.rights import NODE_ANNOTATIONS, NODE_CONDITIONS, NODE_LABELS, REPAIR_CONDITIONS
from agent.model.errors import RefusedError
from agent.model.names import (
    DISMISS_ANNOTATION,
    DRILL_ANNOTATION,
    ERROR_LABEL,
    FAULTS_ANNOTATION,
    POOL_LABEL,
    REQUESTED_ANNOTATION,
)
from agent.model.neighbours import CORDON_REASON
from agent.model.ownership import (
    OPERAND_ON,
    OPERAND_PAUSED,
    OPERANDS,
    asked_labels,
    own_condition,
    own_cordon,
    own_error_label,
    own_taint,
)
from agent.model.text import read_json

_ANNOTATIONS = (*NODE_ANNOTATIONS, DISMISS_ANNOTATION, DRILL_ANNOTATION)
_CONDITIONS = (*NODE_CONDITIONS, *REPAIR_CONDITIONS)
_TRIES = 5


def release(api: Api, namespace: str, node: str | None) -> Iterator[str]:
    """What was done, a sentence each: the permits last, and all nodes where none is named.

    RefusedError, UnreachableError.
    """
    if node is not None:
        path = f"/api/v1/nodes/{quote(node, safe='')}"
        names = [ask_node(api, "GET", path)["metadata"]["name"]]
    else:
        names = list(_touched(api))
    for name in names:
        done = _release(api, name)
        yield f"node {name}: {', '.join(done) or 'nothing of ours'}"
    yield from _fences(api, node)
    path = f"/apis/coordination.k8s.io/v1/namespaces/{quote(namespace, safe='')}/leases"
    for lease in paged(api, f"{path}?labelSelector={quote(POOL_LABEL, safe='')}"):
        if node is None:
            ask(api, "DELETE", f"{path}/{lease['metadata']['name']}")
            yield f"permit {lease['metadata']['name']}: removed"
        elif holder(lease).partition("/")[0] == node:
            ask(api, "PUT", f"{path}/{lease['metadata']['name']}", rewritten(lease, {"holderIdentity": ""}))
            yield f"permit {lease['metadata']['name']}: given back"


def _fences(api: Api, node: str | None) -> Iterator[str]:
    try:
        rules = list(paged(api, RULES))
    except RefusedError as refused:
        if refused.status != HTTPStatus.NOT_FOUND:  # an older API server has none
            yield f"fences of devices could not be listed ({refused})"
        return
    for rule in rules:
        if device := own(rule, node):
            lift(api, rule["metadata"]["name"], rule["metadata"]["uid"])
            yield f"fence of device {device.name} of node {device.pool}: removed"


def _touched(api: Api) -> Iterator[str]:
    """Every node that bears something of ours."""
    for node in paged(api, "/api/v1/nodes"):
        raw = whole_node(node, "GET /api/v1/nodes")
        metadata, conditions = raw["metadata"], (raw.get("status") or {}).get("conditions") or ()
        if (
            any(own_taint(taint_of(t)) for t in (raw.get("spec") or {}).get("taints") or ())
            or any(key in (metadata.get("labels") or {}) for key in NODE_LABELS)
            or any(key in (metadata.get("annotations") or {}) for key in _ANNOTATIONS)
            or any(_ours(c) for c in conditions)
        ):
            yield str(metadata["name"])


def _release(api: Api, name: str) -> list[str]:
    path, done = f"/api/v1/nodes/{quote(name, safe='')}", []
    for tries in range(_TRIES):
        raw = ask_node(api, "GET", path)
        patch = list(_patch(raw))
        if not patch:
            break
        version = {"op": "test", "path": "/metadata/resourceVersion", "value": raw["metadata"]["resourceVersion"]}
        try:
            ask(api, "PATCH", path, [version, *patch], JSON_PATCH)
        except RefusedError as refused:
            if refused.status != HTTPStatus.CONFLICT or tries == _TRIES - 1:
                raise
            continue
        done += [str(one["path"]).rpartition("/")[2].replace("~1", "/") for one in patch]
        break
    ours = [c["type"] for c in (raw.get("status") or {}).get("conditions") or () if _ours(c)]
    if ours:
        gone = {"status": {"conditions": [{"$patch": "delete", "type": kind} for kind in ours]}}
        ask(api, "PATCH", f"{path}/status", gone, STRATEGIC_PATCH)
        done += ours
    selector = quote(f"spec.nodeName={name}", safe="")
    for pod in paged(api, f"/api/v1/pods?fieldSelector={selector}"):
        metadata = pod["metadata"]
        if REQUESTED_ANNOTATION in (metadata.get("annotations") or {}):
            key = f"{metadata.get('namespace')}/{metadata['name']}"
            body = {"metadata": {"uid": metadata.get("uid"), "annotations": {REQUESTED_ANNOTATION: None}}}
            try:
                ask(api, "PATCH", f"/api/v1/namespaces/{key.replace('/', '/pods/')}", body, MERGE_PATCH)
                done.append(f"{REQUESTED_ANNOTATION} of pod {key}")
            except RefusedError as refused:  # by a webhook, maybe: the other pods and nodes go on
                done.append(f"{REQUESTED_ANNOTATION} of pod {key} could not be removed ({refused})")
    return done


def _ours(condition: dict[str, Any]) -> bool:
    return condition["type"] in _CONDITIONS or own_condition(condition_of(condition))


def _patch(raw: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The operations that leave nothing of ours and everything of others."""
    metadata, taints = raw["metadata"], (raw.get("spec") or {}).get("taints") or []
    others = [taint for taint in taints if not own_taint(taint_of(taint))]
    if len(others) < len(taints):
        path = "/spec/taints"
        yield {"op": "replace", "path": path, "value": others} if others else {"op": "remove", "path": path}
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    if own_cordon(annotations.get(CORDON_REASON, "")):
        yield {"op": "remove", "path": f"/metadata/annotations/{CORDON_REASON.replace('/', '~1')}"}
        if (raw.get("spec") or {}).get("unschedulable"):
            yield {"op": "remove", "path": "/spec/unschedulable"}
    for label in OPERANDS:
        if labels.get(label) == OPERAND_PAUSED:
            yield {"op": "replace", "path": f"/metadata/labels/{label.replace('/', '~1')}", "value": OPERAND_ON}
    conditions = {one["type"]: condition_of(one) for one in (raw.get("status") or {}).get("conditions") or ()}
    noted, asked = _noted(annotations.get(FAULTS_ANNOTATION))
    for label, before in asked_labels(labels, asked).items():
        path = f"/metadata/labels/{label.replace('/', '~1')}"
        yield {"op": "replace", "path": path, "value": before} if before else {"op": "remove", "path": path}
    if not own_error_label(labels, conditions, noted):
        labels = {key: value for key, value in labels.items() if key != ERROR_LABEL}
    for part, there, keys in (("labels", labels, NODE_LABELS), ("annotations", annotations, _ANNOTATIONS)):
        for key in keys:
            if key in there:
                yield {"op": "remove", "path": f"/metadata/{part}/{key.replace('/', '~1')}"}


def _noted(stored: str | None) -> tuple[bool | None, Mapping[str, str]]:
    """What the agent wrote down of the label gpu-error, and of those that ask for another node; nothing of what can't
    be read."""
    try:
        written = read_json(stored or "{}")
        noted, asked = written.get("labelled"), written.get("asked")
    except (AttributeError, ValueError):
        return None, {}
    return noted if isinstance(noted, bool) else None, asked if isinstance(asked, dict) else {}
