"""The pool's nodes: how many there are, and which are out of service.

What grows with the pool is read the more seldom the larger it is, so that each agent that waits for a permit is
answered the same few bytes a minute. Whoever takes one reads it just before the taint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import quote

from agent.actions.answers import rows
from agent.actions.api import TABLE, Api, ask
from agent.model.names import OUT_LABEL, WITHDRAWN_LABEL

_OUT = (OUT_LABEL, WITHDRAWN_LABEL)  # each, where it is "true", says that a node is out of service
JUST_NOW_S = 2.0  # how old a reading may be, of the pool or the pause, for whoever takes a withdrawn permit
_NODE_S = 22.0  # so long the 0.36 kB serve that are read of each node: 1 kB a minute
_WAITED_S = 300.0  # whoever asked last before that begins to wait
_SHARED_A_S = 30.0  # small requests a second, of all agents of a pool together


@dataclass(frozen=True, slots=True)
class Pool:
    size: int = 0
    out: frozenset[str] = frozenset()  # NotReady, cordoned, or labelled as withdrawn, by us or by others


def share_s(size: int) -> float:
    """After so many seconds one of so many agents may send another small request."""
    return size / _SHARED_A_S


class PoolReading:
    """The pool as it was last read."""

    def __init__(self, api: Api, selector: str, clock: Callable[[], float]) -> None:
        self._api, self._selector, self._clock = api, selector, clock
        self._at = self._due = self._asked = float("-inf")
        self.pool = Pool()

    def read(self, anew: bool, said: Callable[[], int]) -> bool:
        """If it is due, or ``anew``; whether it is of just now. A thousand that ask at once don't read it each time.

        ``said``: how large it is by the word of others, where that is enough for the first while; else 0.
        """
        now, asked, self._asked = self._clock(), self._asked, self._clock()
        if now - self._at <= JUST_NOW_S:
            return True
        if not anew and now < self._due:
            return False
        if not anew and now - asked > _WAITED_S and (size := said()):
            self.pool, self._due = Pool(size), now + size * _NODE_S
            return False
        self._at, self.pool = now, read_pool(self._api, self._selector)
        self._due = now + self.pool.size * _NODE_S
        return True

    def look_at(self, node: str) -> None:
        """Whether one that was out of service is back."""
        if node in _serving(self._api, self._selector, node):
            self.pool = Pool(self.pool.size, self.pool.out - {node})


def serves(status: str, labels: Mapping[str, str]) -> bool:
    """Whether a node is in service, by its status as kubectl shows it and by its labels."""
    return status == "Ready" and not any(labels.get(label) == "true" for label in _OUT)


def read_pool(api: Api, selector: str) -> Pool:
    """Ask the API server how the pool is. RefusedError, UnreachableError."""
    every = _nodes(api, selector)
    return Pool(len(every), frozenset(every.keys() - _serving(api, selector)))


def count(api: Api) -> int:
    """How many Nodes the cluster has, whatever their pool, by a list of one. RefusedError, UnreachableError."""
    table = ask(api, "GET", "/api/v1/nodes?includeObject=None&limit=1", accept=TABLE)
    return len(table.get("rows") or ()) + int((table.get("metadata") or {}).get("remainingItemCount") or 0)


def names(api: Api) -> list[str]:
    """Of all Nodes. RefusedError, UnreachableError."""
    return list(_nodes(api, ""))


def _serving(api: Api, selector: str, only: str = "") -> set[str]:
    # A selector knows no "or": so we ask for those that bear neither label, and a table shows none.
    bare = ",".join(filter(None, (selector, *(f"{label}!=true" for label in _OUT))))
    return {node for node, status in _nodes(api, bare, only).items() if serves(status, {})}


def _nodes(api: Api, selector: str, only: str = "") -> dict[str, str]:
    """Name → status of each Node, as kubectl shows them.

    Asked as a table: a thousand Nodes whole are 20 MB, and in a bad hour every agent asks at once.
    """
    path = f"/api/v1/nodes?labelSelector={quote(selector, safe='')}&includeObject=None&resourceVersion=0"
    path += f"&fieldSelector=metadata.name%3D{quote(only, safe='')}" if only else ""
    table = ask(api, "GET", path, accept=TABLE)
    return {cells["Name"]: cells["Status"] for cells, _ in rows(table)}
