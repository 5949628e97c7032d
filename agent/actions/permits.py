"""Withdrawal permits: numbered Leases that one node at a time holds. No controller, no leader.

A holder confirms its permit every two minutes and acts only within five of a confirmation; an observer frees a permit
after ten minutes without one. What lies between is the time that a request may take to arrive. Only a withdrawn permit
stays for longer: for as long as its Node bears our taint.

Whether a permit is free is decided by monotonic time, and across lives by the API server's: no node's clock frees one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from agent.actions.api import Api, ask, taint_of, written_at
from agent.actions.pool import Pool, read_pool
from agent.config.settings import Budget
from agent.model.errors import RefusedError
from agent.model.names import PAUSE_CONFIGMAP, PERMIT_KIND_LABEL, PERMIT_VALID_S, POOL_LABEL, SLOT_LEASE
from agent.model.text import rfc3339, unix_s
from agent.model.world import Permit, PermitKind

_LEASES = "/apis/coordination.k8s.io/v1/namespaces/{}/leases"
_PAUSE = "/api/v1/namespaces/{}/configmaps/" + PAUSE_CONFIGMAP
_CONFIRM_S, _ABANDONED_S = 120.0, 600.0
_SILENT_S, _ASK_S = 300.0, 60.0  # from when on, and how often, the Node of a silent holder is asked for
_ASKED_TWICE = 2  # one answer that a Node isn't there may be a mistake
_POOL_S, _JUST_NOW_S = 15.0, 2.0  # how old a reading of the pool may be, and for whoever may take a withdrawn permit

Clock = Callable[[], float]


@dataclass
class _Watched:
    """A Lease of another as first seen in this version."""

    version: str
    since: float  # monotonic seconds
    asked: float = float("-inf")
    missed: int = 0  # how many times running no Node had its holder's UID
    tainted: bool = True  # unknown is tainted: then it is kept


@dataclass(frozen=True, slots=True)
class _Ours:
    """A permit of our own."""

    since: float  # monotonic seconds: when this life of the agent took it, or saw it first
    taken: bool = False  # by this life


class Permits:
    """The pool's Leases as last read; a write is bound to the version that was read."""

    def __init__(self, api: Api, budget: Budget, clock: Clock, wall: Clock) -> None:
        self._api, self._budget, self._clock, self._wall = api, budget, clock, wall
        self._path = _LEASES.format(budget.namespace)
        self._seen: dict[str, dict[str, Any]] = {}
        self._numbers: dict[str, tuple[PermitKind, int]] = {}
        self._watched: dict[str, _Watched] = {}
        self._began = clock()
        self._ours: dict[str, _Ours] = {}
        # Our own permits: when the request was sent that confirmed them, by our two clocks.
        self._confirmed: dict[str, tuple[float, float]] = {}
        self._unanswered = float("-inf")  # when a request under them was last in vain
        # When one was last asked for in vain, and may yet come: by an earlier life before this one began.
        self._asked: float | None = self._began
        self._clashed: set[str] = set()  # Leases that could not be created: they are there, and were not listed
        self._pool: tuple[float, Pool] | None = None
        self._told_at = 0.0  # the latest time by the API server's clock that was seen

    def look(self, own: str, told_at: float = 0.0) -> tuple[Permit, ...]:
        """Every permit that was ever taken. RefusedError or UnreachableError: then nothing is allowed.

        ``told_at``: a time by the API server's clock that has passed, Unix seconds.
        """
        selector = "" if self._clashed else f"?labelSelector={POOL_LABEL}%3D{self._budget.pool}"
        answer, now = ask(self._api, "GET", self._path + selector), self._clock()
        self._asked = None if self.awaited else self._asked
        found = {str(lease["metadata"]["name"]): lease for lease in answer.get("items", ())}
        self._numbers = {name: number for name in found if (number := self._number(name))}
        self._seen = {name: found[name] for name in self._numbers}  # what only looks like a permit is none
        self._watched = {name: watched for name, watched in self._watched.items() if name in self._seen}
        self._clashed = {name for name in self._clashed if name in self._seen and self._hidden(name)}
        ours = {n: lease for n, lease in self._seen.items() if _mine(lease, own) and not self._hidden(n)}
        self._ours = {name: self._ours.get(name, _Ours(now)) for name in ours}
        self._confirmed = {n: at for n, at in self._confirmed.items() if n in ours and _holder(ours[n]) == own}
        self._told_at = max(told_at, self._told_at, *(written_at(lease) for lease in self._seen.values()), 0.0)
        has = {self._numbers[name][0] for name in ours}
        return tuple(self._permit(name, own, self._numbers[name][0] not in has) for name in self._seen)

    def pool(self, own: str, permits: tuple[Permit, ...]) -> Pool:
        """How many nodes the pool has, and which others are out of service and hold no withdrawn permit that counts.

        Whoever may take one has looked just before; a thousand that ask at once don't read it at each try.
        """
        now, holds = self._clock(), {permit.holder for permit in permits if permit.withdraws}
        if self._pool is None or now - self._pool[0] > (_POOL_S if own in holds else _JUST_NOW_S):
            self._pool = now, read_pool(self._api, self._budget.pool_selector)
        named = {holder.partition("/")[0] for holder in (own, *holds)}
        return Pool(self._pool[1].size, self._pool[1].out - named)

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
        answer = str(data.get("paused", "false")).strip().lower()
        return "" if answer in ("", "false") else "ConfigMap gpu-health-agent-pause says so"

    def take(self, kind: PermitKind, index: int, holder: str) -> None:
        """Take a permit, or confirm our own; RefusedError 409 if another node was quicker."""
        name, sent, wall = self._name(kind, index), self._clock(), self._wall()
        lease, now = self._seen.get(name), rfc3339(wall)
        if lease is None or not _mine(lease, holder):
            self._ours[name] = _Ours(sent, taken=True)
        if lease is None:
            labels = {POOL_LABEL: self._budget.pool, PERMIT_KIND_LABEL: str(kind)}
            body = {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": name, "labels": labels},
                "spec": {"holderIdentity": holder, "acquireTime": now, "renewTime": now},
            }
            try:
                self._seen[name] = ask(self._api, "POST", self._path, body)
            except RefusedError as refused:
                if refused.status == HTTPStatus.CONFLICT:
                    self._clashed.add(name)
                raise
        elif _mine(lease, holder):
            self._put(lease, {"holderIdentity": holder, "renewTime": now})
        elif not _holder(lease) or self._abandoned(name):
            self._put(lease, {"holderIdentity": holder, "acquireTime": now, "renewTime": now})
        else:
            raise RefusedError(HTTPStatus.CONFLICT, f"permit {name} is held")
        self._confirmed[name] = sent, wall

    def give(self, kind: PermitKind, index: int, holder: str) -> None:
        """Free our own permit; one that is another's by now is left alone."""
        lease = self._seen.get(self._name(kind, index))
        if lease and _mine(lease, holder):
            now = rfc3339(self._wall())
            used = {"acquireTime": now} if kind is PermitKind.HOURLY else {}  # its hour begins now
            # Before the request: one whose answer is lost may free the permit at any time, until a new
            # confirmation changes its version.
            self._confirmed.pop(self._name(kind, index), None)
            self._put(lease, {"holderIdentity": "", "renewTime": now, **used})

    def require(self, kind: PermitKind) -> None:
        """RefusedError 409 unless a permit of this kind was confirmed to be ours within five minutes."""
        prefix = self._name(kind, 0)[:-1]
        if not any(n.startswith(prefix) and self._confirmed_s(n) < PERMIT_VALID_S for n in self._confirmed):
            raise RefusedError(HTTPStatus.CONFLICT, f"no {kind} permit was confirmed lately: it is asked for again")

    def unanswered(self) -> None:
        """Nobody knows whether what was asked for under a permit arrives: for a while the permit stays."""
        self._unanswered = self._clock()

    def unheard(self) -> None:
        """Nobody knows whether a permit that was asked for comes to be ours."""
        self._asked = self._clock()

    @property
    def awaited(self) -> bool:
        """Whether such a one has come by now or never will: whoever doesn't look for it never gives it back."""
        return self._asked is not None and self._clock() - self._asked >= PERMIT_VALID_S

    def succeeds(self) -> None:
        """Whatever the node holds is another life's: as after a start, nothing of it was taken or confirmed by us."""
        self._began, self._ours, self._confirmed = self._clock(), {}, {}
        self._asked = self._began

    def _permit(self, name: str, own: str, needed: bool) -> Permit:
        lease, (kind, index), ours, now = self._seen[name], self._numbers[name], self._ours.get(name), self._clock()
        holder = own if ours else _holder(lease)  # one of a Node of our name that is gone is ours
        watched = self._watched.get(name)
        version = lease["metadata"]["resourceVersion"]
        if watched is None or watched.version != version:
            watched = self._watched[name] = _Watched(version, now)
        if holder and not ours and needed:
            self._ask_holder(watched, holder)
        return Permit(
            kind,
            index,
            holder,
            stale=bool(ours) and self._confirmed_s(name) > _CONFIRM_S,
            pending=bool(ours) and now - self._unanswered < PERMIT_VALID_S,
            abandoned=bool(holder) and not ours and self._abandoned(name),
            hidden=self._hidden(name),
            inherited=ours is not None and not ours.taken and now - self._began < PERMIT_VALID_S,
            taken_s=int(self._taken_s(lease, ours, now - watched.since)),
            had_s=int(now - ours.since) if ours else 0,
            unchanged_s=int(now - watched.since),
        )

    def _confirmed_s(self, name: str) -> float:
        """Seconds since it was confirmed, by the clock that tells more: the monotonic one stands in a sleep.

        A wall clock that steps only makes the agent confirm once more.
        """
        at, wall = self._confirmed.get(name, (float("-inf"), 0.0))
        return max(self._clock() - at, self._wall() - wall)

    def _taken_s(self, lease: Mapping[str, Any], ours: _Ours | None, watched_s: float) -> float:
        """Of our own permit, for people, by our own clocks.

        Of another's, which may rest for an hour, the API server's clock counts, as its last word tells, or for how
        long we have watched it. One of several servers may be ahead: our own clock is the limit. All this only delays.
        """
        now, written = self._clock(), written_at(lease)
        if ours:
            return now - ours.since if ours.taken else max(self._age_s(lease), watched_s)
        return max(min(self._told_at, self._wall()) - written, watched_s) if written else watched_s

    def _age_s(self, lease: Mapping[str, Any]) -> float:
        """Seconds since somebody took it, by the clock of the node that did."""
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
            watched.missed += refused.status == HTTPStatus.NOT_FOUND
            return
        watched.missed = watched.missed + 1 if node["metadata"]["uid"] != uid else 0
        watched.tainted = any(taint_of(t).withdraws for t in (node.get("spec") or {}).get("taints") or ())

    def _abandoned(self, name: str) -> bool:
        """Whether its holder's Node is gone, or has not confirmed it for ten minutes.

        A withdrawn one stays even so while the Node bears our taint.
        """
        watched = self._watched.get(name)
        if watched is None or watched.version != self._seen[name]["metadata"]["resourceVersion"]:
            return False
        if watched.missed >= _ASKED_TWICE:
            return True
        if self._numbers[name][0] is not PermitKind.WITHDRAWN:
            return self._clock() - watched.since >= _ABANDONED_S
        # The answer about the taint must itself be from after the ten minutes.
        return not watched.tainted and watched.asked - watched.since >= _ABANDONED_S

    def _put(self, lease: dict[str, Any], spec: Mapping[str, Any]) -> None:
        name = lease["metadata"]["name"]
        body = {**lease, "spec": {**(lease.get("spec") or {}), **spec}}
        self._seen[name] = ask(self._api, "PUT", f"{self._path}/{name}", body)

    def _name(self, kind: PermitKind, index: int) -> str:
        return SLOT_LEASE.format(kind=kind, pool=self._budget.pool, index=index)

    def _number(self, name: str) -> tuple[PermitKind, int] | None:
        """Which permit of this pool the Lease of this name is; None: it is none."""
        index = name.rpartition("-")[2]
        numbers = ((kind, int(index)) for kind in PermitKind) if index.isdecimal() else ()
        return next((number for number in numbers if self._name(*number) == name), None)

    def _hidden(self, name: str) -> bool:
        """Whether it lacks the labels by which every agent finds it."""
        labels = self._seen[name]["metadata"].get("labels") or {}
        wanted = self._budget.pool, str(self._numbers[name][0])
        return (labels.get(POOL_LABEL), labels.get(PERMIT_KIND_LABEL)) != wanted


def _holder(lease: Mapping[str, Any]) -> str:
    return str((lease.get("spec") or {}).get("holderIdentity") or "")


def _mine(lease: Mapping[str, Any], own: str) -> bool:
    """Whether this node holds it: as it is, or as a Node object of its name that is gone."""
    return _holder(lease).partition("/")[0] == own.partition("/")[0]
