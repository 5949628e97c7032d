"""What the drill asks of the API server; all that it makes bears its label, and is found again by that."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from agent.actions.answers import paged
from agent.actions.api import JSON_PATCH, MERGE_PATCH, Api, ask
from agent.drill.kit import LOAD, Object
from agent.drill.pod_exec import Execute
from agent.model.errors import AgentError, RefusedError, UnreachableError
from agent.model.names import DRILL_ANNOTATION, DRILL_LABEL, HARD_TAINT
from agent.model.text import rfc3339
from agent.runtime.drill_marks import valid

_PLURALS = {
    "ConfigMap": "configmaps",
    "Deployment": "deployments",
    "Job": "jobs",
    "Namespace": "namespaces",
    "PersistentVolumeClaim": "persistentvolumeclaims",
    "Pod": "pods",
    "PodDisruptionBudget": "poddisruptionbudgets",
    "Service": "services",
}
_AGENT = "app.kubernetes.io%2Fname%3Dgpu-health-agent"
_LOOK_S = 0.2
# Renewed while the drill lives; what was killed is over by itself this soon.
_EXPIRES_S = 180.0
RENEW_S = 30.0


class MissedError(AgentError):
    """Something did not happen in its time: the drill ends, and says what."""


class Cluster:
    """One cluster through its API server alone: no kubectl, no way to its pods but the server's own."""

    def __init__(self, api: Api, namespace: str, agents: str, execute: Execute | None = None) -> None:
        self.api, self.namespace, self.agents, self.execute = api, namespace, agents, execute
        self.home = f"/api/v1/namespaces/{namespace}"

    def get(self, path: str) -> Any:
        return ask(self.api, "GET", path)

    def apply(self, one: Object) -> None:
        """Create; what is there already is of a drill that went before, and was swept away, or is another's."""
        ask(self.api, "POST", _collection(one), one)

    def pods(self) -> list[Object]:
        """Of the kit."""
        return list(self.get(f"{self.home}/pods")["items"])

    def all_pods(self) -> list[Object]:
        return list(paged(self.api, "/api/v1/pods"))

    def nodes(self) -> list[Object]:
        return list(paged(self.api, "/api/v1/nodes"))

    def node(self, name: str) -> Object:
        return dict(self.get(node_path(name)))

    def tainted(self, node: str) -> bool:
        return any(taint["key"] == HARD_TAINT for taint in self.node(node)["spec"].get("taints") or ())

    def agent_pods(self) -> dict[str, Object]:
        """The agents by node."""
        pods = paged(self.api, f"/api/v1/namespaces/{self.agents}/pods?labelSelector={_AGENT}")
        return {pod["spec"]["nodeName"]: pod for pod in pods if pod["spec"].get("nodeName")}

    def ask_pod(self, namespace: str, pod: str, port: int, path: str) -> Any:
        """A pod's own answer in JSON, through the API server's proxy; None where it does not answer."""
        where = f"/api/v1/namespaces/{namespace}/pods/{pod}:{port}/proxy{path}"
        try:
            return self.get(where)
        except (RefusedError, UnreachableError):
            return None

    def delete_pod(self, pod: Object, grace_s: int | None = None) -> None:
        metadata = pod["metadata"]
        body: Object = {"preconditions": {"uid": metadata["uid"]}}
        if grace_s is not None:
            body["gracePeriodSeconds"] = grace_s
        self._gone("DELETE", f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}", body)

    def end(self, job: Object) -> None:
        """A Job and its pods, as kubectl deletes them: they have their grace period."""
        path = f"{_collection(job)}/{job['metadata']['name']}"
        self._gone("DELETE", path, {"propagationPolicy": "Background"})
        self.wait(f"{job['metadata']['name']} is deleted", lambda: self.api("GET", path)[0] == HTTPStatus.NOT_FOUND, 60)

    def run(self, pod: Object, container: str, command: list[str]) -> str:
        """What a command says in a pod's container."""
        if self.execute is None:
            raise MissedError(f"{command[0]} can't be run in a pod without the API server's exec")
        return self.execute(pod["metadata"]["namespace"], pod["metadata"]["name"], container, command)

    def wait(self, what: str, ready: Callable[[], Any], timeout_s: float) -> Any:
        """Until ``ready`` is true, and what it was. A server that does not answer for a moment is asked again."""
        end = time.monotonic() + timeout_s
        trouble = ""
        while True:
            try:
                if found := ready():
                    return found
                trouble = ""
            except (RefusedError, UnreachableError) as error:
                trouble = f" ({error})"
            if time.monotonic() > end:
                raise MissedError(f"{what}: not within {timeout_s:.0f} s{trouble}")
            time.sleep(_LOOK_S)

    def annotate(self, path: str, nonce: str) -> None:
        """Say on a node, or on our namespace, that this drill is under way; written anew while it lives."""
        expires = rfc3339(time.time() + _EXPIRES_S, "seconds").replace("Z", "+00:00")  # the form of every drill so far
        text = json.dumps({"nonce": nonce, "expires": expires})
        ask(self.api, "PATCH", path, {"metadata": {"annotations": {DRILL_ANNOTATION: text}}}, MERGE_PATCH)

    def marked(self) -> dict[str, str]:
        """The nodes that bear a drill's annotation, and our namespace if it does: path and text."""
        found = {node_path(node["metadata"]["name"]): node for node in self.nodes()}
        if self.state() in ("ours", "ending"):
            found[self.home] = self.get(self.home)
        texts = {path: (one["metadata"].get("annotations") or {}).get(DRILL_ANNOTATION) for path, one in found.items()}
        return {path: text for path, text in texts.items() if text is not None}

    def alive(self, marked: Mapping[str, str]) -> bool:
        """Whether one of these drills is renewed: a living one writes its annotation anew each half minute."""
        if not any(valid(text, time.time()) for text in marked.values()):
            return False
        end = time.monotonic() + RENEW_S + 15
        while time.monotonic() < end:
            time.sleep(1)
            if any(self.marked().get(path, text) != text for path, text in marked.items()):
                return True
        return False

    def release(self, nonce: str | None) -> list[str]:
        """Take this drill's annotation off the node, or any drill's: the fault ends with it."""
        done = []
        for path, text in self.marked().items():
            if path != self.home and (nonce is None or nonce in text):
                pointer = f"/metadata/annotations/{DRILL_ANNOTATION.replace('/', '~1')}"
                patch = [{"op": "test", "path": pointer, "value": text}, {"op": "remove", "path": pointer}]
                self._gone("PATCH", path, patch, JSON_PATCH)
                done.append(f"annotation {DRILL_ANNOTATION} taken off {path.removeprefix('/api/v1/')}")
        return done

    def stop(self) -> None:
        """End the kit's pods, if the namespace is ours: one that ends with pods in it waits long for them.

        Nobody asks them any more, so none needs its grace period to leave politely.
        """
        if self.state() == "ours":
            for root, plural in ("/apis/apps/v1", "deployments"), ("/apis/batch/v1", "jobs"), ("/api/v1", "pods"):
                path = f"{root}/namespaces/{self.namespace}/{plural}"
                options: Object = {"gracePeriodSeconds": 1} if plural == "pods" else {"propagationPolicy": "Background"}
                ask(self.api, "DELETE", path, options)

    def sweep(self, nonce: str | None, keep: bool = False) -> list[str]:
        """Remove what this drill left, or without a nonce what any did; what was done, a sentence each.

        Annotations first: a node out of service is the worst that can be left.
        """
        done = self.release(nonce)
        for path, kind in self._made():
            if keep and kind != "pod on a node":
                continue
            for one in self.get(f"{path}?labelSelector={quote(DRILL_LABEL, safe='')}")["items"]:
                metadata = one["metadata"]
                only = {"namespace": self.namespace, "pod": LOAD, "configmap": LOAD}.get(kind, metadata["name"])
                if metadata["name"] != only:  # another drill's, or of a kit that is not ours
                    continue
                if not metadata.get("deletionTimestamp"):
                    self._gone("DELETE", f"{path}/{metadata['name']}", {"preconditions": {"uid": metadata["uid"]}})
                    done.append(f"{kind} {metadata['name']} deleted")
        return done

    def _made(self) -> Iterator[tuple[str, str]]:
        """Where the drill's own things are; in a namespace of its own they go with it."""
        yield f"/api/v1/namespaces/{self.agents}/pods", "pod on a node"
        if self.state() == "theirs":
            for plural in ("pods", "configmaps"):
                yield f"{self.home}/{plural}", plural.removesuffix("s")
        yield "/api/v1/namespaces", "namespace"

    def free(self) -> bool:
        """Whether nothing that was swept still ends where the next drill begins."""
        return self.state() != "ending" and self.api("GET", f"{self.home}/pods/{LOAD}")[0] == HTTPStatus.NOT_FOUND

    def state(self) -> str:
        """Of the namespace: absent, ours, theirs, or ending."""
        status, found = self.api("GET", self.home)
        if status == HTTPStatus.NOT_FOUND:
            return "absent"
        if status >= 300:
            raise RefusedError(status, str(found.get("message", "")))
        if found["metadata"].get("deletionTimestamp"):
            return "ending"
        return "ours" if DRILL_LABEL in (found["metadata"].get("labels") or {}) else "theirs"

    def _gone(self, method: str, path: str, body: Any, content_type: str = "application/json") -> None:
        """What is gone, or another's by now, is none of ours."""
        try:
            ask(self.api, method, path, body, content_type)
        except RefusedError as refused:
            if refused.status not in (HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT):
                raise


def node_path(name: str) -> str:
    return f"/api/v1/nodes/{quote(name, safe='')}"


def _collection(one: Object) -> str:
    group = one["apiVersion"]
    root = f"/api/{group}" if "/" not in group else f"/apis/{group}"
    namespace = one["metadata"].get("namespace")
    return f"{root}{f'/namespaces/{namespace}' if namespace else ''}/{_PLURALS[one['kind']]}"
