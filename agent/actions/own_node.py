"""The agent's own Node: read, watched and written.

It is 24 kB, of which a healthy or waiting agent needs to know only that nothing has changed. So while the watch vouches
for the version that was read last, it is not read again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from agent.actions.answers import ask_node
from agent.actions.api import JSON_PATCH, METADATA, STRATEGIC_PATCH, Api, ask, taint_of
from agent.actions.node_patch import report_body, retaint_patch
from agent.model.cluster_client import Annotations, Labels
from agent.model.errors import RefusedError, UnreachableError
from agent.model.ownership import own_taint
from agent.model.steps import Report, Retaint
from agent.model.text import rfc3339

_VOUCHES_S = 90.0  # for so long a word of the watch counts: a bookmark comes every minute or so
_SERVES_S = 600.0  # however sure the watch is: the longest that one reading serves

Clock = Callable[[], float]


class OwnNode:
    """One Node as it was last read or written, and what the watch says of it."""

    def __init__(self, api: Api, name: str, clock: Clock, wall: Clock) -> None:
        self._api, self._name, self._clock, self._wall = api, name, clock, wall
        self._path = f"/api/v1/nodes/{quote(name, safe='')}"
        self.raw: dict[str, Any] = {}
        self.aged = False  # whether the last reading was the watch's word alone: no permit is taken on that
        self._read_at = float("-inf")
        self._vouched = "", float("-inf")  # the version that the watch told last, and when it last spoke; its thread's

    @property
    def holder(self) -> str:
        return f"{self._name}/{self.raw['metadata']['uid']}"

    def read(self, afresh: bool) -> dict[str, Any]:
        """As it is; unless ``afresh``, as it was last read while the watch vouches for it and no taint of ours stands.

        RefusedError, UnreachableError.
        """
        (version, heard_at), now = self._vouched, self._clock()
        lately = now - heard_at < _VOUCHES_S and now - self._read_at < _SERVES_S
        self.aged = lately and self._unchanged(version) and not self._tainted and not afresh
        if not self.aged:
            self.raw = self._asked()
            self._read_at = now
        return self.raw

    def confirm(self) -> None:
        """It is as the watch said, by a reading just now. RefusedError 409 if it isn't; UnreachableError."""
        said = self.raw["metadata"].get("resourceVersion")
        if self.aged and self.read(afresh=True)["metadata"].get("resourceVersion") != said:
            raise RefusedError(HTTPStatus.CONFLICT, "the Node has changed: it is looked at again")

    def _unchanged(self, version: str) -> bool:
        return bool(version and self.raw) and version == self.raw["metadata"].get("resourceVersion")

    @property
    def _tainted(self) -> bool:
        return any(own_taint(taint_of(taint)) for taint in (self.raw.get("spec") or {}).get("taints") or ())

    def _asked(self) -> dict[str, Any]:
        try:
            raw = ask_node(self._api, "GET", self._path)
        except RefusedError as refused:
            if refused.status == HTTPStatus.NOT_FOUND:
                why = f"node {self._name} does not exist: check node, --node or NODE_NAME"
                raise RefusedError(HTTPStatus.NOT_FOUND, why) from None
            raise
        if raw["metadata"]["name"] != self._name or not raw["metadata"]["uid"]:
            raise UnreachableError(f"what answers for node {self._name} is no Node: is it a proxy, or another server?")
        return raw

    def words(self) -> Iterator[tuple[Labels, Annotations]]:
        """They come by a watch on our Node's metadata, as each kubelet has one: from the server's cache, and no list.

        RefusedError, UnreachableError. It begins with the Node as it is, so none is resumed.
        """
        one = f"fieldSelector=metadata.name%3D{quote(self._name, safe='')}"
        path = f"/api/v1/nodes?watch=true&allowWatchBookmarks=true&resourceVersion=0&{one}"
        try:
            for event in ask(self._api, "GET", path, accept=METADATA):
                node = event["object"]
                match event["type"]:
                    case "ADDED" | "MODIFIED":
                        self.heard(node["metadata"].get("resourceVersion"))
                        yield node["metadata"].get("labels") or {}, node["metadata"].get("annotations") or {}
                    case "BOOKMARK":
                        self.heard(None)
                    case "ERROR":
                        status = int(node.get("code") or HTTPStatus.INTERNAL_SERVER_ERROR)
                        raise RefusedError(status, str(node.get("message")))
                    case _:
                        self.heard("")
        finally:
            self.heard("")

    def heard(self, version: str | None) -> None:
        """The watch says that the Node's version is this, or none that is known; None: still the same."""
        self._vouched = self._vouched[0] if version is None else version, self._clock()

    def report(self, step: Report) -> None:
        # The status subresource takes conditions, labels and annotations in one write, and no spec.
        body = report_body(step, self.raw, rfc3339(self._wall(), "seconds"))
        self._write(f"{self._path}/status", body, STRATEGIC_PATCH)

    def retaint(self, step: Retaint) -> None:
        self._write(self._path, retaint_patch(step, self.raw), JSON_PATCH)

    def _write(self, path: str, body: Any, content_type: str) -> None:
        self._read_at = float("-inf")  # whoever was overtaken, or heard nothing, reads it anew, whatever the watch says
        self.raw = ask_node(self._api, "PATCH", path, body, content_type)
        self._read_at = self._clock()
