"""Withdrawal permits: numbered Leases that one node at a time holds. No controller, no leader.

A holder confirms its permit every two minutes and acts only within five of a confirmation; an observer frees a permit
after ten minutes without one. What lies between is the time that a request may take to arrive.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from agent.actions.api import TABLE, Api, ask, taint_of, written_at
from agent.config.settings import Budget
from agent.model.errors import RefusedError
from agent.model.names import OUT_LABEL, PAUSE_CONFIGMAP, PERMIT_KIND_LABEL, PERMIT_VALID_S, POOL_LABEL, SLOT_LEASE
from agent.model.text import rfc3339, unix_s
from agent.model.world import Permit, PermitKind

_LEASES = "/apis/coordination.k8s.io/v1/namespaces/{}/leases"
_PAUSE = "/api/v1/namespaces/{}/configmaps/" + PAUSE_CONFIGMAP
_RENEW_S, _ABANDONED_S = 120.0, 600.0
_SILENT_S, _ASK_S = 300.0, 60.0  # from when on, and how often, the Node of a silent holder is asked for
_POOL_S = 15.0  # how long a reading of the pool serves

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Pool:
    """The pool's nodes: all of them, and those out of service by no doing of ours."""

    size: int
    out: frozenset[str]


@dataclass
class _Watched:
    """A Lease of another as first seen in this version."""

    version: str
    since: float  # monotonic seconds
    asked: float = float("-inf")
    gone: bool = False  # no Node has its holder's UID
    tainted: bool = True  # unknown is tainted: then it is kept


class Permits:
    """The pool's Leases as last read; a write is bound to the version that was read."""

    def __init__(self, api: Api, budget: Budget, clock: Clock, wall: Clock) -> None:
        self._api, self._budget, self._clock, self._wall = api, budget, clock, wall
        self._path = _LEASES.format(budget.namespace)
        self._seen: dict[str, dict[str, Any]] = {}
        self._watched: dict[str, _Watched] = {}
        self._taken: dict[str, float] = {}  # those that this process took, and when
        self._confirmed: dict[str, float] = {}  # our own permits: when the request was sent that confirmed them
        self._unanswered = float("-inf")  # when something was last asked for under them in vain
        self._pool: tuple[float, Pool] | None = None
        self._told_at = 0.0  # the latest time by the API server's clock that was seen

    def look(self, own: str, told_at: float = 0.0) -> tuple[Permit, ...]:
        """Every permit that was ever taken. RefusedError or UnreachableError: then nothing is allowed.

        ``told_at``: a time by the API server's clock that has passed, Unix seconds.
        """
        answer = ask(self._api, "GET", f"{self._path}?labelSelector={POOL_LABEL}%3D{self._budget.pool}")
        self._seen = {lease["metadata"]["name"]: lease for lease in answer.get("items", ())}
        self._watched = {name: watched for name, watched in self._watched.items() if name in self._seen}
        self._confirmed = {
            n: at for n, at in self._confirmed.items() if n in self._seen and _holder(self._seen[n]) == own
        }
        self._told_at = max(told_at, self._told_at, *(written_at(lease) for lease in self._seen.values()), 0.0)
        ours = {_kind(lease) for lease in self._seen.values() if _holder(lease) == own}
        permits = (self._permit(lease, own, _kind(lease) not in ours) for lease in self._seen.values())
        return tuple(permit for permit in permits if permit)

    def pool(self, own: str) -> Pool:
        """How many nodes the pool has, and which others are out by no doing of ours: NotReady, cordoned, tainted."""
        now = self._clock()
        if self._pool is None or now - self._pool[0] > _POOL_S:
            rows = self._nodes(self._budget.pool_selector)
            marked = self._nodes(",".join(filter(None, (self._budget.pool_selector, f"{OUT_LABEL}=true"))))
            out = frozenset(node for node, said in rows.items() if said != "Ready" or node in marked)
            self._pool = (now, Pool(len(rows), out - {own}))
        holders = {_holder(lease).partition("/")[0] for lease in self._seen.values()}
        return Pool(self._pool[1].size, self._pool[1].out - holders)

    def _nodes(self, selector: str) -> dict[str, str]:
        """Name → status of each Node, as kubectl shows them.

        Asked as a table: a thousand Nodes whole are 20 MB, and in a bad hour every agent asks at once.
        """
        path = f"/api/v1/nodes?labelSelector={quote(selector, safe='')}&includeObject=None&resourceVersion=0"
        table = ask(self._api, "GET", path, accept=TABLE)
        columns = [column["name"] for column in table["columnDefinitions"]]
        name, status = columns.index("Name"), columns.index("Status")
        return {str(row["cells"][name]): str(row["cells"][status]) for row in table.get("rows") or ()}

    def paused(self) -> str:
        """Why the whole cluster's agents are to pause; empty while they run."""
        path = _PAUSE.format(self._budget.namespace)
        try:
            data = ask(self._api, "GET", path).get("data") or {}
        except RefusedError as refused:
            return (
                ""
                if refused.status == HTTPStatus.NOT_FOUND
                else f"ConfigMap gpu-health-agent-pause can't be read: {refused}"
            )
        said = str(data.get("paused", "false")).strip().lower()
        return "" if said in ("", "false") else "ConfigMap gpu-health-agent-pause says so"

    def take(self, kind: PermitKind, index: int, holder: str) -> None:
        """Take a permit, or confirm our own; RefusedError 409 if another node was quicker."""
        name, sent = self._name(kind, index), self._clock()
        lease, now = self._seen.get(name), rfc3339(self._wall())
        if lease is None or _holder(lease) != holder:
            self._taken[name] = sent
        if lease is None:
            labels = {POOL_LABEL: self._budget.pool, PERMIT_KIND_LABEL: str(kind)}
            body = {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": name, "labels": labels},
                "spec": {"holderIdentity": holder, "acquireTime": now, "renewTime": now},
            }
            self._seen[name] = ask(self._api, "POST", self._path, body)
        elif _holder(lease) == holder:
            self._put(lease, {"renewTime": now})
        elif not _holder(lease) or self._abandoned(lease):
            self._put(lease, {"holderIdentity": holder, "acquireTime": now, "renewTime": now})
        else:
            raise RefusedError(HTTPStatus.CONFLICT, f"permit {name} is held")
        self._confirmed[name] = sent

    def give(self, kind: PermitKind, index: int, holder: str) -> None:
        """Free our own permit; one that is another's by now is left alone."""
        lease = self._seen.get(self._name(kind, index))
        if lease and _holder(lease) == holder:
            now = rfc3339(self._wall())
            used = {"acquireTime": now} if kind is PermitKind.HOURLY else {}  # its hour begins now
            # Before the request: one whose answer is lost may free the permit at any time, until a new
            # confirmation changes its version.
            self._confirmed.pop(self._name(kind, index), None)
            self._put(lease, {"holderIdentity": "", "renewTime": now, **used})

    def require(self, kind: PermitKind) -> None:
        """RefusedError 409 unless a permit of this kind was confirmed to be ours within five minutes."""
        prefix, now = self._name(kind, 0)[:-1], self._clock()
        if not any(n.startswith(prefix) and now - at < PERMIT_VALID_S for n, at in self._confirmed.items()):
            raise RefusedError(HTTPStatus.CONFLICT, f"no {kind} permit was confirmed lately: it is asked for again")

    def unanswered(self) -> None:
        """Nobody knows whether what was asked for under a permit arrives: for a while the permit stays."""
        self._unanswered = self._clock()

    def _permit(self, lease: Mapping[str, Any], own: str, needed: bool) -> Permit | None:
        """A Lease as a permit; one that only looks like ours is none."""
        metadata = lease["metadata"]
        name, kind = metadata["name"], _kind(lease)
        index = name.rpartition("-")[2]
        if kind not in tuple(PermitKind) or not index.isdigit() or name != self._name(PermitKind(kind), int(index)):
            return None
        holder, now = _holder(lease), self._clock()
        mine = holder == own
        watched = self._watched.get(name)
        if watched is None or watched.version != metadata["resourceVersion"]:
            watched = self._watched[name] = _Watched(metadata["resourceVersion"], now)
        if holder and not mine and needed:
            self._ask_holder(watched, holder)
        return Permit(
            PermitKind(kind),
            int(index),
            holder,
            stale=mine and now - self._confirmed.get(name, float("-inf")) > _RENEW_S,
            pending=mine and now - self._unanswered < PERMIT_VALID_S,
            abandoned=bool(holder) and not mine and self._abandoned(lease),
            taken_s=int(self._taken_s(lease, mine, now - watched.since)),
            unchanged_s=int(now - watched.since),
        )

    def _taken_s(self, lease: Mapping[str, Any], mine: bool, watched_s: float) -> float:
        """Of our own by our own clocks. Another node's clock is another: of one that rests the API server's counts,
        whose last word may be minutes old, or for how long we have watched it: both can only delay."""
        name, written = lease["metadata"]["name"], written_at(lease)
        if mine:
            return self._clock() - self._taken[name] if name in self._taken else max(self._age_s(lease), watched_s)
        return max(self._told_at - written, watched_s) if written else watched_s

    def _age_s(self, lease: Mapping[str, Any]) -> float:
        """Since it was taken, by the clock of the node that took it."""
        taken = unix_s((lease.get("spec") or {}).get("acquireTime"))
        return 0.0 if taken is None else self._wall() - taken

    def _ask_holder(self, watched: _Watched, holder: str) -> None:
        """Whether the Node that holds a permit is still there, and bears our taint; asked once a minute.

        A live holder confirms its permit every two minutes, so that a waiting fleet asks for silent ones only.
        """
        now = self._clock()
        if now - watched.since < _SILENT_S or now - watched.asked < _ASK_S:
            return
        watched.asked = now
        name, _, uid = holder.partition("/")
        try:
            node = ask(self._api, "GET", f"/api/v1/nodes/{quote(name, safe='')}")
        except RefusedError as refused:
            watched.gone = refused.status == HTTPStatus.NOT_FOUND
            return
        watched.gone = node["metadata"]["uid"] != uid
        watched.tainted = any(taint_of(t).withdraws for t in (node.get("spec") or {}).get("taints") or ())

    def _abandoned(self, lease: Mapping[str, Any]) -> bool:
        """Whether its holder's Node is gone, or bears no taint of ours and has not confirmed it for ten minutes."""
        watched = self._watched.get(lease["metadata"]["name"])
        if watched is None or watched.version != lease["metadata"]["resourceVersion"]:
            return False
        # The answer about the taint must itself be from after the ten minutes.
        unseen_s = watched.asked - watched.since
        return watched.gone or (not watched.tainted and unseen_s >= _ABANDONED_S)

    def _put(self, lease: dict[str, Any], spec: Mapping[str, Any]) -> None:
        name = lease["metadata"]["name"]
        renewed = {**lease, "spec": {**(lease.get("spec") or {}), **spec}}
        self._seen[name] = ask(self._api, "PUT", f"{self._path}/{name}", renewed)

    def _name(self, kind: PermitKind, index: int) -> str:
        return SLOT_LEASE.format(kind=kind, pool=self._budget.pool, index=index)


def _kind(lease: Mapping[str, Any]) -> str:
    return str((lease["metadata"].get("labels") or {}).get(PERMIT_KIND_LABEL))


def _holder(lease: Mapping[str, Any]) -> str:
    return str((lease.get("spec") or {}).get("holderIdentity") or "")
