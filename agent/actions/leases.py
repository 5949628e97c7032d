"""The pool's Leases and its nodes, as far as this node has read them, and how long ago.

A whole fleet may wait for a permit, and for weeks. So an agent lists the Leases the more seldom the more there are. In
between it looks at its own, and takes turns. Once it asks which Leases were given back, by their label. Then it looks
at one thing that keeps the budget spent: a Lease of another's, or a node that is out of service. What it knows so is
old. Before it takes a permit it lists all anew, and reads the pool.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from agent.actions.answers import rows
from agent.actions.api import TABLE, Api, ask, taint_of, written_at
from agent.actions.lease import as_asked, holder, largest_pool, mine, pool_size, rewritten
from agent.actions.pool import Pool, PoolReading, count, share_s
from agent.config.settings import Budget
from agent.model.errors import RefusedError
from agent.model.names import (
    FREE_LABEL,
    LARGE_POOL,
    PERMIT_KIND_LABEL,
    POOL_LABEL,
    POOL_UNREAD,
    SELECTOR_ANNOTATION,
    SLOT_LEASE,
)
from agent.model.world import PermitKind

_API = "coordination.k8s.io/v1"
_PATH = f"/apis/{_API}/namespaces/{{}}/leases"
_ABANDONED_S = 600.0
_SILENT_S, _ASK_S = 300.0, 60.0  # from when on, and how often at most, the Node of a silent holder is asked for
_ASKED_TWICE = 2  # one answer that a Node isn't there may be a mistake
_NODE_S, _LONGEST_ASK_S = 6.0, 1440.0  # after one that is there, 24 kB: for each node of the pool, and at most
_FEW, _LEASE_S = 3, 40.0  # so many are always listed; of more the 0.8 kB of each serve so long: 1.2 kB a minute
LOOKS_S = 10.0  # a node that waits and looks sooner, to be told, goes by what it knows

Clock = Callable[[], float]


@dataclass
class _Watched:
    """A Lease as first seen in this version."""

    version: str
    since: float  # monotonic seconds
    seen: float  # when it was last read so
    asked: float = float("-inf")
    missed: int = 0  # how many times running no Node had its holder's UID
    tainted: bool = True  # unknown is tainted: then it is kept


class Leases:
    """Those of the pool's permits by name, as last read; a write is bound to the version that was read."""

    def __init__(self, api: Api, budget: Budget, clock: Clock) -> None:
        self._api, self._budget, self._clock = api, budget, clock
        self._path = _PATH.format(budget.namespace)
        self._pool = PoolReading(api, budget.pool_selector, clock)
        self.seen: dict[str, dict[str, Any]] = {}
        self.numbers: dict[str, tuple[PermitKind, int]] = {}
        self.aged = True  # whether something was not read at the last look: no permit is taken on that
        self._anew = self._whole = False  # whether the next look reads all; whether the last one listed all
        self._watched: dict[str, _Watched] = {}
        self._clashed: set[str] = set()  # they could not be created: they are there, and were not listed
        self._listed_at = self._turn_at = self._asks_from = float("-inf")
        self._held = self._out = frozenset[str]()  # who held one when the pool was read; who is out besides
        self._eye = ""  # what was looked at last, in our turn
        self._free_from = float("-inf")  # from when on it may be asked again which are free
        self._asked_free = False  # in the last turn
        self._chance: random.Random | None = None

    def read(self, own: str, whole: bool) -> None:
        """Those that are due, of the node ``own``, or ``whole``. RefusedError, UnreachableError: nothing is allowed."""
        self.aged = True
        whole = whole or self._anew or self._early(own) or bool(self._clashed)
        least_s = 0.0 if self._kinds(own) else LOOKS_S
        serves_s = 0.0 if whole or len(self.seen) <= _FEW else len(self.seen) * _LEASE_S
        self._whole = self._clock() - self._listed_at >= serves_s
        read = self._list() if self._whole else {name for name, lease in self.seen.items() if mine(lease, own)}
        if not self._anew and self._clock() - self._turn_at >= max(least_s, share_s(self._pool.pool.size)):
            self._turn_at = self._clock()
            self._asked_free = not (self._asked_free or self._whole) and self._clock() >= self._free_from
            read |= self._given_back(own) if self._asked_free else self._in_turn(own, read)
        for name in sorted(read) if not self._whole else ():
            self._read_one(name)
        self._anew = self._anew or self._early(own)
        self._clashed = {name for name in self._clashed if name in self.seen and self.hidden(name)}
        self._watched = {name: self._sighted(name, name in read) for name in self.seen}
        self._ask_a_holder([name for name in self._wanted(own) if name in read])

    def names(self, own: str) -> bool:
        """Whether one is held by the node ``own``, by a table: a tenth of the list. RefusedError, UnreachableError."""
        path = f"{self._path}?labelSelector={POOL_LABEL}%3D{self._budget.pool}&includeObject=None"
        table = ask(self._api, "GET", path, accept=TABLE)
        return any(mine({"spec": {"holderIdentity": cells["Holder"]}}, own) for cells, _ in rows(table))

    def read_pool(self, own: str, counts: bool, named: frozenset[str]) -> Pool:
        """After the Leases: the pool without the nodes ``named``, read if it ``counts`` and is due.

        RefusedError, UnreachableError.
        """
        fresh = (counts or self._anew) and self._pool.read(self._anew, lambda: self._said(own))
        self._held = named if fresh else self._held
        self.aged, self._anew = not (self._whole and fresh), False
        pool = self._pool.pool
        # Whoever held a permit when the pool was read, and holds none any more, is most likely back.
        self._out = pool.out - named - self._held
        return Pool(pool.size, self._out if self.aged else pool.out - named)

    @property
    def pool_size(self) -> int:
        """As it was last read."""
        return self._pool.pool.size

    def renew(self) -> None:
        """The next look reads the Leases and the pool whole, as whoever takes a permit must."""
        self._anew = True

    def create(self, name: str, spec: Mapping[str, Any], words: Mapping[str, str]) -> None:
        """``words``: annotations."""
        if number := self._number(name):
            self.numbers[name] = number
        labels = {POOL_LABEL: self._budget.pool, PERMIT_KIND_LABEL: str(self.numbers[name][0])}
        about = {SELECTOR_ANNOTATION: self._budget.pool_selector}
        metadata = {"name": name, "labels": labels, "annotations": {**about, **words}}
        try:
            self._write("POST", name, {"apiVersion": _API, "kind": "Lease", "metadata": metadata, "spec": {**spec}})
        except RefusedError as refused:
            if refused.status == HTTPStatus.CONFLICT:
                self._clashed.add(name)
            raise

    def put(self, lease: Mapping[str, Any], spec: Mapping[str, Any], words: Mapping[str, str] | None = None) -> None:
        """``words``: annotations that it bears from now on."""
        self._write("PUT", lease["metadata"]["name"], rewritten(lease, spec, words))

    def _write(self, method: str, name: str, body: Mapping[str, Any]) -> None:
        listed_at, self._listed_at = self._listed_at, float("-inf")  # whoever was overtaken lists them at once
        answer = ask(self._api, method, self._path + (f"/{name}" if method == "PUT" else ""), body)
        self.seen[name] = as_asked(answer, body)
        self._listed_at = listed_at

    def watched_s(self, name: str) -> float:
        """Seconds since it was first seen as it is."""
        return self._clock() - self._watched[name].since

    def unchanged_s(self, name: str) -> float:
        """For how many seconds it was surely as it is."""
        return self._watched[name].seen - self._watched[name].since

    def abandoned(self, name: str) -> bool:
        """Whether its holder's Node is gone, or has not confirmed it for ten minutes.

        A withdrawn one stays even so while the Node bears our taint.
        """
        watched = self._watched.get(name)
        if watched is None or watched.version != self.seen[name]["metadata"]["resourceVersion"]:
            return False
        if watched.missed >= _ASKED_TWICE:
            return True
        if self.numbers[name][0] is not PermitKind.WITHDRAWN:
            return watched.seen - watched.since >= _ABANDONED_S
        # The answer about the taint must itself be from after the ten minutes.
        return not watched.tainted and watched.asked - watched.since >= _ABANDONED_S

    def unread(self, name: str) -> bool:
        """Whether it was taken before the pool was read."""
        return pool_size(self.seen.get(name, {})) == POOL_UNREAD

    def _early(self, own: str) -> bool:
        """Whether this node took one so, and must see now whether the budget has a place for it."""
        return any(self.unread(name) and mine(lease, own) for name, lease in self.seen.items())

    def hidden(self, name: str) -> bool:
        """Whether it lacks the labels by which every agent finds it."""
        labels = self.seen[name]["metadata"].get("labels") or {}
        wanted = self._budget.pool, str(self.numbers[name][0])
        return (labels.get(POOL_LABEL), labels.get(PERMIT_KIND_LABEL)) != wanted

    def seek(self, name: str) -> Mapping[str, Any] | None:
        """The Lease of this name, whatever its labels say; None: it is gone. RefusedError, UnreachableError."""
        self._read_one(name)
        if number := self._number(name):
            self.numbers[name] = number
        return self.seen.get(name)

    def told_at(self) -> float:
        """The latest time by the API server's clock that they tell, Unix seconds."""
        return max(map(written_at, self.seen.values()), default=0.0)

    def _list(self) -> set[str]:
        selector = "" if self._clashed else f"?labelSelector={POOL_LABEL}%3D{self._budget.pool}"
        answer = ask(self._api, "GET", self._path + selector)
        found = {str(lease["metadata"]["name"]): lease for lease in answer.get("items", ())}
        self.numbers = {name: number for name in found if (number := self._number(name))}
        self.seen = {name: found[name] for name in self.numbers}  # what only looks like a permit is none
        self._listed_at = self._clock()
        return {*self.seen}

    def _read_one(self, name: str) -> None:
        """By a list of one, for which the right to list is enough."""
        found = ask(self._api, "GET", f"{self._path}?fieldSelector=metadata.name%3D{name}").get("items") or ()
        self.seen.pop(name, None)
        self.seen.update((name, lease) for lease in found if lease["metadata"]["name"] == name)

    def _given_back(self, own: str) -> set[str]:
        """Those that the node may wait for, and that somebody gave back since they were read."""
        selector = f"{POOL_LABEL}%3D{self._budget.pool}%2C{FREE_LABEL}%3Dtrue"
        answer = ask(self._api, "GET", f"{self._path}?labelSelector={selector}&resourceVersion=0")
        free = {str(lease["metadata"]["name"]) for lease in answer.get("items") or () if not holder(lease)}
        self._free_from = self._clock() + len(free) * _LEASE_S
        return {name for name in self._wanted(own) if name in free and holder(self.seen[name])}

    def _in_turn(self, own: str, read: set[str]) -> set[str]:
        """One thing that keeps the budget spent, by chance: each agent another one."""
        held = [
            name for name in self._wanted(own) if name not in read and (holder(self.seen[name]) or self.hidden(name))
        ]
        kinds = self._kinds(own)
        out = () if PermitKind.WITHDRAWN in kinds else sorted(self._out)
        self._chance = self._chance or random.Random(own)  # noqa: S311 - no secret
        watched = self._watched.get(self._eye)
        if self._eye not in held or not (watched and 0 < watched.missed < _ASKED_TWICE):
            self._eye = self._chance.choice([*held, *out]) if held or out else ""
        if self._eye in out:
            self._pool.look_at(self._eye)
        return {self._eye}.intersection(held)

    def _said(self, own: str) -> int:
        """The pool's size by the word of holders, or else of those before them, where that is enough; else 0.

        A whole fleet that turns sick at once need not read the pool to know that all its permits are held. And in a
        large one a permit is taken before the pool is read. So whoever lies there makes nobody exceed the budget.
        """
        if PermitKind.WITHDRAWN in self._kinds(own):
            return 0
        ours = [lease for name, lease in self.seen.items() if self.numbers[name][0] is PermitKind.WITHDRAWN]
        held = [lease for lease in ours if holder(lease)]
        size = largest_pool(held) or largest_pool(ours) or count(self._api)
        early = size >= LARGE_POOL and not self._budget.per_hour
        return size if early or self._budget.withdrawn(size) <= len(held) else 0

    def _kinds(self, own: str) -> set[PermitKind]:
        """What the node holds."""
        return {self.numbers[n][0] for n, lease in self.seen.items() if mine(lease, own) and not self.hidden(n)}

    def _wanted(self, own: str) -> list[str]:
        """Those of others that the node may wait for: to be withdrawn, or then to drain."""
        kinds = self._kinds(own)
        drains = PermitKind.WITHDRAWN in kinds
        wanted = {PermitKind.DRAINING} if drains else {PermitKind.HOURLY, PermitKind.WITHDRAWN}
        return sorted(
            n for n, lease in self.seen.items() if self.numbers[n][0] in wanted - kinds and not mine(lease, own)
        )

    def _sighted(self, name: str, read: bool) -> _Watched:
        watched, version, now = self._watched.get(name), self.seen[name]["metadata"]["resourceVersion"], self._clock()
        if watched is None or watched.version != version:
            return _Watched(version, now, now)
        watched.seen = now if read else watched.seen
        return watched

    def _ask_a_holder(self, names: list[str]) -> None:
        """Whether the Node that holds a permit is still there, and bears our taint: of one of these.

        A live holder confirms its permit every two minutes, so that a waiting fleet asks for silent ones only.
        """
        now = self._clock()
        silent = [name for name in names if holder(self.seen[name]) and self.watched_s(name) >= _SILENT_S]
        due = [(self._watched[name].asked, name) for name in silent if now - self._watched[name].asked >= _ASK_S]
        if not due or now < self._asks_from:
            return
        name = min(due)[1]
        watched = self._watched[name]
        watched.asked = now
        node, _, uid = holder(self.seen[name]).partition("/")
        try:
            found = ask(self._api, "GET", f"/api/v1/nodes/{quote(node, safe='')}")
        except RefusedError as refused:
            watched.missed += refused.status == HTTPStatus.NOT_FOUND
            return
        self._asks_from = now + min(max(_ASK_S, self._pool.pool.size * _NODE_S), _LONGEST_ASK_S)
        watched.missed = watched.missed + 1 if found["metadata"]["uid"] != uid else 0
        watched.tainted = any(taint_of(t).withdraws for t in (found.get("spec") or {}).get("taints") or ())

    def _number(self, name: str) -> tuple[PermitKind, int] | None:
        """Which permit of this pool the Lease of this name is; None: it is none."""
        index = name.rpartition("-")[2]
        numbers = ((kind, int(index)) for kind in PermitKind) if index.isdecimal() else ()
        return next((number for number in numbers if self.name(*number) == name), None)

    def name(self, kind: PermitKind, index: int) -> str:
        return SLOT_LEASE.format(kind=kind, pool=self._budget.pool, index=index)
