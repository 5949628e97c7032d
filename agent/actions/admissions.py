"""Pods that this node's kubelet refused when they came: of whose workloads, and since when it goes on like that.

By our own clock alone. A kubelet that begins anew refuses pods too, until its device plugins are back. So what is
refused within ten minutes of the Node's turning ready counts for nothing. A quick beginning leaves the Node ready, and
nothing tells of it; but all that it refuses comes within ten minutes. So the first two such spans of each hour count
for nothing either. Nor does what was refused while nobody could read it: it may have been then.

A Job of each night, a Job or a pod of each number: a person who makes a series of them has one workload.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

from agent.actions.answers import rows
from agent.actions.api import TABLE, Api, ask
from agent.actions.controllers import workload
from agent.model.errors import RefusedError, UnreachableError

_SELDOM_S, _SOON_S = 300.0, 60.0  # between two reads: of a node that refuses nobody, and of one that did lately
_UNREAD_S = 900.0  # between two reads, longer means that they failed
_BEGINS_S = 600.0  # so long a kubelet that began anew may refuse pods
_BEGINNINGS = 2  # so many within the window, that nothing tells of, are no sign
_REFUSED = "UnexpectedAdmissionError"
_MOST = 1000  # of a node's pods that failed, with the metadata of each
_UNREADABLE = (KeyError, TypeError, AttributeError)
_SERIES = re.compile(r"(.+/(?:Job|Pod)/.+?)(?:-?\d+)+")


class Admissions:
    """What this life saw: pods that were refused before its start count for nothing."""

    def __init__(self, api: Api, node: str, window_s: float, clock: Callable[[], float]) -> None:
        self._api, self._window_s, self._clock = api, window_s, clock
        selector = quote(f"spec.nodeName={node},status.phase=Failed", safe="")
        self._path = f"/api/v1/pods?fieldSelector={selector}&resourceVersion=0"  # of the server's cache: each node asks
        self._ready, self._begins, self._asked = "", float("-inf"), float("-inf")
        self._known: dict[str, float] = {}  # pod by UID → when it was there last; a server may lag behind another
        self._read_at = float("-inf")
        self._at: dict[str, float] = {}  # workload → when one of it was last refused so that it counts
        self._last = float("-inf")  # and when any was
        self._spans: list[float] = []  # of the window: when refusals began, each span as long as a kubelet's beginning

    def look(self, ready: Mapping[str, Any]) -> tuple[str, ...]:
        """The workloads, ``namespace/Kind/name``; ``ready`` is the Node's condition. Who may not ask knows of none."""
        now, since = self._clock(), str(ready.get("lastTransitionTime", ""))
        if since != self._ready:
            self._ready, self._begins = since, now
        if now - self._asked >= (_SOON_S if now - self._last < self._window_s else _SELDOM_S):
            self._asked = now
            try:
                self._read(now)
            except (RefusedError, UnreachableError, *_UNREADABLE):
                pass
        self._at = {name: at for name, at in self._at.items() if now - at < self._window_s}
        return tuple(sorted(self._at))

    def _read(self, now: float) -> None:
        there = [shown for shown, _ in self._failed("None")]
        if len(there) > _MOST and _REFUSED in there:  # a list of them all would be too much; it goes on as it did
            self._at, self._last = dict.fromkeys(self._at, now), now
            return
        rows = self._failed("Metadata") if _REFUSED in there else ()
        refused = {metadata["uid"]: metadata for shown, metadata in rows if shown == _REFUSED}
        new = [pod for uid, pod in refused.items() if uid not in self._known]
        self._known |= dict.fromkeys(refused, now)
        self._known = {uid: at for uid, at in self._known.items() if now - at < self._window_s}
        lately, self._read_at = now - self._read_at <= _UNREAD_S, now
        if not (new and lately):
            return
        self._last = now
        self._spans = [at for at in self._spans if now - at < self._window_s]
        if not self._spans or now - self._spans[-1] >= _BEGINS_S:
            self._spans.append(now)
        if now - self._begins >= _BEGINS_S and len(self._spans) > _BEGINNINGS:
            self._at |= dict.fromkeys(filter(None, map(_series, new)), now)

    def _failed(self, included: str) -> list[tuple[str, dict[str, Any]]]:
        """Each pod that failed: what kubectl prints as its status, and its metadata if that is ``included``."""
        answer = ask(self._api, "GET", f"{self._path}&includeObject={included}", accept=TABLE)
        return [(cells["Status"], metadata) for cells, metadata in rows(answer)]


def _series(metadata: Mapping[str, Any]) -> str:
    """Its workload, or the series that this is one of; empty where it can't be read."""
    try:
        name, made = workload(metadata), str(metadata.get("generateName") or "")
        if made and name == f"{metadata['namespace']}/Pod/{metadata['name']}":
            return name[: -len(metadata["name"])] + made.rstrip("-")
    except _UNREADABLE:
        return ""
    series = _SERIES.fullmatch(name)
    return series[1] if series else name
