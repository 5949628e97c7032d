"""A cluster in memory that answers the requests of ``actions/`` as an API server would, for simulate and tests."""

from __future__ import annotations

import json
import marshal
import threading
from collections.abc import Iterator
from functools import lru_cache
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from agent.actions.api import JSON, JSON_PATCH, PATCH_FAILED, TABLE

_OBJECTS = {"nodes", "pods", "leases", "events", "configmaps", "jobs", "cronjobs", "replicasets"}
_OBJECTS |= {"resourceslices", "resourceclaims", "devicetaintrules"}


class InMemoryCluster:
    """An Api. Nodes, pods, Leases and Events only; evicted pods start again on the next free node."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._version = 0
        self._objects: dict[tuple[str, str, str], dict[str, Any]] = {}  # (kind, namespace, name)
        self.evicted: list[str] = []
        self.requests: list[tuple[str, str]] = []

    def add_node(self, name: str) -> None:
        labels = {"nvidia.com/gpu.present": "true"}
        gpus = {"nvidia.com/gpu": "8"}
        status = {"conditions": [], "capacity": {**gpus}, "allocatable": {**gpus}}
        body = {"metadata": {"name": name, "labels": labels}, "spec": {}, "status": status}
        self._store("nodes", "", body)

    def add_pod(self, namespace: str, name: str, node: str, gpus: int = 1, owner: str = "ReplicaSet") -> None:
        container = {"name": "main", "resources": {"limits": {"nvidia.com/gpu": str(gpus)} if gpus else {}}}
        group = "batch/v1" if owner == "Job" else "apps/v1"
        is_owned = {"apiVersion": group, "kind": owner, "name": name, "uid": f"uid-of-{owner}-{name}"}
        owners = [{**is_owned, "controller": True}] if owner else []
        metadata = {"name": name, "namespace": namespace, "ownerReferences": owners}
        spec = {"nodeName": node, "containers": [container]}
        self._store("pods", namespace, {"metadata": metadata, "spec": spec, "status": {"phase": "Running"}})

    def read(self, kind: str, name: str, namespace: str = "") -> dict[str, Any]:
        with self._lock:
            return dict(_copy(self._objects[kind, namespace, name]))

    def pods_on(self, node: str) -> list[str]:
        with self._lock:
            return [
                name for (kind, _, name), o in self._objects.items() if kind == "pods" and o["spec"]["nodeName"] == node
            ]

    def __call__(
        self, method: str, path: str, body: Any = None, content_type: str = JSON, accept: str = JSON
    ) -> tuple[int, Any]:
        asked, kind, namespace, rest, query = _asked(path)
        if not kind:
            return _status(HTTPStatus.NOT_FOUND, "the server could not find the requested resource")
        body = json.loads(json.dumps(body)) if body else body  # as it crosses the wire
        with self._lock:
            self.requests.append((method, asked))
            if "dryRun" in query and not (rest[1:] == ["eviction"] and body):
                return 200, {}
            if method == "POST" and rest[1:] == ["eviction"]:
                return self._evict(namespace, rest[0], body, dry_run="dryRun" in query)
            if method == "POST":
                return self._create(kind, namespace, body)
            if query.get("watch"):
                return 200, self._events(query["fieldSelector"].partition("metadata.name=")[2])
            if not rest:
                every = self._select(kind, namespace, query)
                found, more = _page(every, query)
                answer = _table(kind, found, query) if accept == TABLE else {"items": _copy(found)}
                left = {} if "labelSelector" in query else {"remainingItemCount": sum(_key(o) > more for o in every)}
                return 200, {**answer, "metadata": {"continue": more, **(left if more else {})}}
            old = self._objects.get((kind, namespace, rest[0]))
            if old is None:
                return _status(HTTPStatus.NOT_FOUND, f'{kind} "{rest[0]}" not found')
            if method == "PUT":
                if body["metadata"].get("resourceVersion") != old["metadata"]["resourceVersion"]:
                    return _status(HTTPStatus.CONFLICT, "the object has been modified")
                return 200, self._store(kind, namespace, body)
            if method == "PATCH":
                return self._patch(kind, namespace, old, body, content_type)
            if method == "DELETE":
                if body and body["preconditions"]["uid"] != old["metadata"]["uid"]:
                    return _status(HTTPStatus.CONFLICT, "the UID in the precondition does not match")
                del self._objects[kind, namespace, rest[0]]
            return 200, _copy(old)

    def _select(self, kind: str, namespace: str, query: dict[str, str]) -> list[dict[str, Any]]:
        wanted = query.get("labelSelector", "")
        selectors = [one.partition("=") for one in wanted.replace(" ", "").replace("==", "=").split(",") if one]
        fields = dict(one.split("=") for one in query.get("fieldSelector", "").split(",") if one)
        node, only, phase = (fields.get(key, "") for key in ("spec.nodeName", "metadata.name", "status.phase"))
        return [
            o
            for (k, ns, name), o in self._objects.items()
            if k == kind
            and (not namespace or ns == namespace)
            and only in ("", name)
            and all(_labelled(o["metadata"].get("labels") or {}, *one) for one in selectors)
            and (not node or o["spec"]["nodeName"] == node)
            and (not phase or o["status"]["phase"] == phase)
        ]

    def _create(self, kind: str, namespace: str, body: dict[str, Any]) -> tuple[int, Any]:
        if (kind, namespace, body["metadata"]["name"]) in self._objects:
            return _status(HTTPStatus.CONFLICT, "already exists")
        return 201, self._store(kind, namespace, body)

    def _store(self, kind: str, namespace: str, body: dict[str, Any]) -> dict[str, Any]:
        self._version += 1
        stored: dict[str, Any] = _copy(body)
        stored["metadata"]["resourceVersion"] = str(self._version)
        stored["metadata"].setdefault("uid", f"uid-{self._version}")
        self._objects[kind, namespace, body["metadata"]["name"]] = stored
        with self._changed:
            self._changed.notify_all()
        return dict(_copy(stored))

    def _events(self, name: str) -> Iterator[dict[str, Any]]:
        """A watch on one Node: first as it is, then at each change."""
        shown: dict[str, Any] | None = None
        while True:
            with self._changed:
                while (node := self._objects.get(("nodes", "", name))) in (shown, None):
                    self._changed.wait()
                shown = node
            yield {"type": "MODIFIED", "object": _copy(node)}

    def _evict(self, namespace: str, name: str, body: dict[str, Any], dry_run: bool) -> tuple[int, Any]:
        pod = self._objects.get(("pods", namespace, name))
        if pod is None:
            return _status(HTTPStatus.NOT_FOUND, f'pods "{name}" not found')
        if body["deleteOptions"]["preconditions"]["uid"] != pod["metadata"]["uid"]:
            return _status(HTTPStatus.CONFLICT, "the UID in the precondition does not match")
        if dry_run:
            return 201, {}
        self.evicted.append(f"{namespace}/{name}")
        del self._objects["pods", namespace, name]
        free = [n for (k, _, n), node in self._objects.items() if k == "nodes" and not node["spec"].get("taints")]
        if free:  # its controller starts another one where nothing keeps it away
            moved = _copy(pod)
            del moved["metadata"]["uid"]
            moved["metadata"]["name"] = f"{name}-again"
            moved["spec"]["nodeName"] = free[0]
            self._store("pods", namespace, moved)
        return 201, {}

    def _patch(self, kind: str, namespace: str, old: dict[str, Any], body: Any, content_type: str) -> tuple[int, Any]:
        new = _copy(old)
        if content_type == JSON_PATCH:
            for operation in body:
                if not _json_patch(new, operation):
                    return _status(HTTPStatus.UNPROCESSABLE_ENTITY, PATCH_FAILED)
        else:
            read = (body.get("metadata") or {}).get("resourceVersion")
            if read not in (None, old["metadata"]["resourceVersion"]):
                return _status(HTTPStatus.CONFLICT, "the object has been modified")
            _merge(new, body)
        return 200, self._store(kind, namespace, new)


@lru_cache(1024)
def _asked(path: str) -> tuple[str, str, str, list[str], dict[str, str]]:
    """The path alone, and the kind, the namespace, what follows and the query; no kind if it has none of ours."""
    url = urlsplit(path)
    parts = [part for part in unquote(url.path).split("/") if part]
    at = next((i for i, part in enumerate(parts) if part in _OBJECTS), None)
    if at is None:
        return url.path, "", "", [], {}
    namespace = parts[at - 1] if parts[at - 2] == "namespaces" else ""
    return url.path, parts[at], namespace, parts[at + 1 :], dict(parse_qsl(url.query))


def _labelled(labels: dict[str, str], label: str, valued: str, wanted: str) -> bool:
    if label.endswith("!"):
        return labels.get(label[:-1]) != wanted
    return labels.get(label) == wanted if valued else label in labels


def _page(found: list[dict[str, Any]], query: dict[str, str]) -> tuple[list[dict[str, Any]], str]:
    """At most ``limit`` of them, and after which one the next page begins."""
    if not (limit := int(query.get("limit", 0))):
        return found, ""
    rest = sorted((one for one in found if _key(one) > query.get("continue", "")), key=_key)
    return rest[:limit], _key(rest[limit - 1]) if len(rest) > limit else ""


def _key(one: dict[str, Any]) -> str:
    return f"{one['metadata'].get('namespace', '')}/{one['metadata']['name']}"


def _copy(value: Any) -> Any:
    """What JSON holds, many times as quickly as copy.deepcopy."""
    return marshal.loads(marshal.dumps(value))  # noqa: S302 - its own words of a moment ago


def _table(kind: str, found: list[dict[str, Any]], query: dict[str, str]) -> dict[str, Any]:
    """As kubectl shows them, each with its metadata unless none is asked for."""
    (columns, cells), bare = _TABLES[kind], query.get("includeObject") == "None"
    rows = [{"cells": cells(o), "object": None if bare else {"metadata": _copy(o["metadata"])}} for o in found]
    return {"columnDefinitions": [{"name": name} for name in columns], "rows": rows}


def _node_cells(node: dict[str, Any]) -> list[str]:
    ready = next((c["status"] for c in node["status"]["conditions"] if c["type"] == "Ready"), "True")
    cordoned = ",SchedulingDisabled" if node["spec"].get("unschedulable") else ""
    return [node["metadata"]["name"], ("Ready" if ready == "True" else "NotReady") + cordoned]


_POD_COLUMNS = ("Name", "Ready", "Status", "Node")


def _pod_cells(pod: dict[str, Any]) -> list[str]:
    return [
        pod["metadata"]["name"],
        "1/1",
        pod["status"].get("reason", pod["status"]["phase"]),
        pod["spec"]["nodeName"],
    ]


def _lease_cells(lease: dict[str, Any]) -> list[str]:
    return [lease["metadata"]["name"], lease["spec"].get("holderIdentity") or ""]


_TABLES = {
    "nodes": (("Name", "Status"), _node_cells),
    "pods": (_POD_COLUMNS, _pod_cells),
    "leases": (("Name", "Holder"), _lease_cells),
}


def _status(code: int, message: str) -> tuple[int, Any]:
    return code, {"kind": "Status", "status": "Failure", "message": message, "code": code}


def _json_patch(target: dict[str, Any], operation: dict[str, Any]) -> bool:
    *parents, last = [p.replace("~1", "/").replace("~0", "~") for p in operation["path"].split("/")[1:]]
    for part in parents:
        target = target[part]
    match operation["op"]:
        case "test":
            return bool(target.get(last) == operation["value"])
        case "remove":
            del target[last]
        case _:
            target[last] = operation["value"]
    return True


def _merge(target: dict[str, Any], patch: dict[str, Any]) -> None:
    """Strategic merge as far as a Node needs it: null removes, conditions merge by type."""
    for key, value in patch.items():
        if value is None:
            target.pop(key, None)
        elif key == "conditions":
            changed = {c["type"] for c in value}
            target[key] = [c for c in target.get(key, ()) if c["type"] not in changed]
            target[key] += [c for c in value if "$patch" not in c]
        elif isinstance(value, dict):
            _merge(target.setdefault(key, {}), value)
        else:
            target[key] = value
