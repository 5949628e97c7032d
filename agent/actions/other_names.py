"""The pool's permits under other names of it: a pool that is renamed has two sets of them for a while.

Two agents that go by different names write to different Leases, so that each may take the last place. Therefore, where
Leases of another name are there, a permit is taken first, and then all Leases are read once more. Of two that do so at
once the later reader sees the other's, and gives its own back before it acts. Whoever read before our name had any
Lease doesn't read again, but what it asks for arrives within five minutes: so long a new name gives no permit beside
an older one. Who takes the very first permit of a name reads again as well.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from agent.model.names import PERMIT_KIND_LABEL, PERMIT_VALID_S, POOL_LABEL, SLOT_LEASE
from agent.model.text import unix_s
from agent.model.world import Names, Permit, PermitKind

_SILENT_S = 600.0  # whoever has not confirmed its permit for so long looks again before it acts

Lease = Mapping[str, Any]


class OtherNames:
    """What the last list of all Leases showed."""

    def __init__(self, pool: str, clock: Callable[[], float]) -> None:
        self._pool, self._clock = pool, clock
        self.there: dict[str, Lease] = {}
        self._numbers: dict[str, tuple[PermitKind, int, str]] = {}
        self._since: dict[str, tuple[str, float]] = {}  # Lease → its version, and since when it is seen so
        self._own: dict[str, float] = {}  # UID of a Lease of our own name → since when it is seen
        self._listed_at = float("-inf")
        self._made = float("inf")  # when the oldest of these was, by the API server's clock
        self.holders = frozenset[str]()  # nodes that hold one, whether of this pool or not

    @property
    def double(self) -> bool:
        """Whether a permit of ours counts only once all Leases were read after it was taken."""
        return bool(self.there)

    @property
    def first(self) -> bool:
        """Whether no permit of our name was ever taken."""
        return not self._own

    def listed(self, own: Collection[Lease], found: Collection[Lease]) -> None:
        """All Leases that bear a pool's label, and those of them that are of our name."""
        now = self._clock()
        self._own = {uid: self._own.get(uid, now) for uid in (str(one["metadata"].get("uid")) for one in own)}
        made = (unix_s(one["metadata"].get("creationTimestamp")) for one in own)
        self._made = min((at for at in made if at), default=float("inf"))
        self._listed_at = now
        self._numbers = {name: number for one in found for name, number in _numbered(one, self._pool)}
        self.there = {one["metadata"]["name"]: one for one in found if one["metadata"]["name"] in self._numbers}
        versions = {name: str(one["metadata"]["resourceVersion"]) for name, one in self.there.items()}
        before = self._since
        self._since = {n: before[n] if before.get(n, ("",))[0] == v else (v, now) for n, v in versions.items()}
        self.holders = frozenset(node for one in self.there.values() if (node := _node(one)))

    def names(self, own: str, outside: Collection[str], now_s: float) -> Names:
        """``outside``: which of the holders are nodes of no pool of ours; ``now_s``: Unix seconds that have passed."""
        if not self.double:
            return Names()
        node = own.partition("/")[0]
        age_s = max([0.0, now_s - self._made, *(self._clock() - since for since in self._own.values())])
        permits = [self._permit(name) for name, one in self.there.items() if _node(one)]
        ours = tuple(one for one in permits if one.holder == node)
        others = (one for one in permits if one.holder not in (node, *outside) and one.unchanged_s < _SILENT_S)
        return Names(True, age_s < PERMIT_VALID_S, ours, tuple(others))

    def _permit(self, name: str) -> Permit:
        (kind, index, pool), seen_s = self._numbers[name], self._listed_at - self._since[name][1]
        return Permit(kind, index, _node(self.there[name]), unchanged_s=int(seen_s), pool=pool)


def _numbered(lease: Lease, own: str) -> list[tuple[str, tuple[PermitKind, int, str]]]:
    """Its name, and which permit of which other name it is; none if it is none."""
    labels, name = lease["metadata"].get("labels") or {}, str(lease["metadata"]["name"])
    pool, index = labels.get(POOL_LABEL), name.rpartition("-")[2]
    if not pool or pool == own or not index.isdecimal():
        return []
    kinds = (kind for kind in PermitKind if kind == labels.get(PERMIT_KIND_LABEL))
    numbers = ((kind, int(index), pool) for kind in kinds)
    return [(name, one) for one in numbers if SLOT_LEASE.format(kind=one[0], pool=pool, index=one[1]) == name]


def _node(lease: Lease) -> str:
    return str((lease.get("spec") or {}).get("holderIdentity") or "").partition("/")[0]
