"""Withdrawal permits: numbered Leases that one node at a time holds. No controller, no leader.

A holder confirms its permit every two minutes and acts only within five of a confirmation; an observer frees a permit
after ten minutes without one. What lies between is the time that a request may take to arrive. Only a withdrawn permit
stays for longer: for as long as its Node bears our taint.

Whether a permit is free is decided by monotonic time, and across lives by the API server's: no node's clock frees one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from agent.actions.api import Api, ask, written_at
from agent.actions.lease import holder, mine, pool_size
from agent.actions.leases import LOOKS_S, Clock, Leases
from agent.actions.pool import JUST_NOW_S, Pool
from agent.config.settings import Budget
from agent.model.errors import RefusedError
from agent.model.names import LAST_HOLDER_ANNOTATION, PAUSE_CONFIGMAP, PERMIT_VALID_S, POOL_SIZE_ANNOTATION, POOL_UNREAD
from agent.model.text import rfc3339, unix_s
from agent.model.world import Permit, PermitKind

_PAUSE = "/api/v1/namespaces/{}/configmaps/" + PAUSE_CONFIGMAP
_CONFIRM_S = 120.0
_SEEK_S = 120.0  # how often a node that needs no permit looks for one of its own that was out of sight


@dataclass(frozen=True, slots=True)
class _Ours:
    """A permit of our own."""

    since: float  # monotonic seconds: when this life of the agent took it, or saw it first
    taken: bool = False  # by this life


class Permits:
    """The pool's permits as last read, and what this node does with them."""

    def __init__(self, api: Api, budget: Budget, clock: Clock, wall: Clock) -> None:
        self._api, self._budget, self._clock, self._wall = api, budget, clock, wall
        self._leases = Leases(api, budget, clock)
        self._began, self._new = clock(), True  # whether none was looked at in this life
        self._ours: dict[str, _Ours] = {}
        self._unseen: list[str] = []  # those of our own that went out of sight: their Leases lack labels, or are gone
        self._sought = float("-inf")
        # Our own permits: when the request was sent that confirmed them, by our two clocks.
        self._confirmed: dict[str, tuple[float, float]] = {}
        self._unanswered = float("-inf")  # when a request under them was last in vain
        # When one was last asked for in vain, and may yet come: by an earlier life before this one began.
        self._asked: float | None = self._began
        self.early = False  # whether one was taken early, and not looked at since
        self._paused = "", float("-inf")  # why, and when that was read
        self.told_at = 0.0  # the latest time by the API server's clock that was seen

    @property
    def aged(self) -> bool:
        """Whether what the last look gave was partly read a while ago: no permit is taken on that."""
        return self._leases.aged

    @property
    def holding(self) -> bool:
        """Whether the last look showed one of our own, or one was asked for since."""
        return bool(self._ours)

    def renew(self) -> None:
        """The next look reads the permits and the pool whole."""
        self._leases.renew()

    def due(self, own: str, closely: bool, bare: bool) -> bool:
        """Whether they are to be looked at, ``closely`` or for one that may have come to be ours.

        A table of all tells whether one is our own: at the start of an agent that needs none, on a Node ``bare`` of our
        taints, and once all has come that was asked for in vain, or by an earlier life.
        """
        awaited, asks, self._new = self.awaited, closely and bare and self._new, False
        ours = awaited
        if (awaited or asks) and not self.holding:
            ours = self._leases.names(own)
            self._asked = None if awaited and not ours else self._asked
        return (closely and not asks) or ours or self.found(own)

    def look(self, own: str, told_at: float = 0.0, whole: bool = False) -> tuple[Permit, ...]:
        """Every permit that was ever taken. RefusedError or UnreachableError: then nothing is allowed.

        ``told_at``: a time by the API server's clock that has passed, Unix seconds. ``whole``: all are read anew.
        """
        self._leases.read(own, whole or self.awaited)
        self._asked = None if self.awaited else self._asked
        seen = self._leases.seen
        ours = {n: lease for n, lease in seen.items() if mine(lease, own) and not self._leases.hidden(n)}
        lost = {*self._unseen, *self._ours, *(n for n in seen if mine(seen[n], own))} - {*ours}
        self._unseen = sorted(n for n in lost if n not in seen or mine(seen[n], own))
        self._ours = {name: self._ours.get(name, _Ours(self._clock())) for name in ours}
        self._confirmed = {n: at for n, at in self._confirmed.items() if n in ours and holder(ours[n]) == own}
        self.told_at = max(told_at, self.told_at, self._leases.told_at())
        return tuple(self._permit(name, own) for name in seen)

    def pool(self, own: str, permits: tuple[Permit, ...], counts: bool = True) -> Pool:
        """How many nodes the pool has, and which others are out of service and hold no withdrawn permit that counts.

        As it was last read, unless it ``counts`` now. Whoever took one early, and may have to give it back, is out too.
        """
        holds = {permit.holder for permit in permits if permit.withdraws and not permit.early}
        return self._leases.read_pool(own, counts, frozenset(holder.partition("/")[0] for holder in (own, *holds)))

    def paused(self) -> str:
        """Why the whole cluster's agents are to pause; empty while they run."""
        serves_s = JUST_NOW_S if self.early else 0.0 if self._ours or not self.aged else LOOKS_S
        self.early = False
        if self._clock() - self._paused[1] < serves_s:
            return self._paused[0]
        self._paused = self._read_paused(), self._clock()
        return self._paused[0]

    def _read_paused(self) -> str:
        path = _PAUSE.format(self._budget.namespace)
        try:
            found = ask(self._api, "GET", path)
        except RefusedError as refused:
            return (
                ""
                if refused.status == HTTPStatus.NOT_FOUND
                else f"ConfigMap gpu-health-agent-pause can't be read: {refused}"
            )
        if (found.get("metadata") or {}).get("name") != PAUSE_CONFIGMAP:
            return f"ConfigMap {PAUSE_CONFIGMAP} can't be read: the API server's answer is another object"
        answer = str((found.get("data") or {}).get("paused", "false")).strip().lower()
        return "" if answer in ("", "false") else "ConfigMap gpu-health-agent-pause says so"

    def take(self, kind: PermitKind, index: int, own: str, early: bool = False) -> None:
        """Take a permit, or confirm our own; RefusedError 409 if another node was quicker.

        ``early``: before the pool is read. It stands for nothing until it is confirmed after that.
        """
        name, sent, wall = self._leases.name(kind, index), self._clock(), self._wall()
        lease, now = self._leases.seen.get(name), rfc3339(wall)
        ours = lease if lease and mine(lease, own) else None
        if early and any(mine(one, own) for one in self._leases.seen.values()):
            raise RefusedError(HTTPStatus.CONFLICT, "a permit is held: first the pool is read")
        if self.aged and not (early or (ours and pool_size(ours))):
            self.renew()
            raise RefusedError(HTTPStatus.CONFLICT, "the permits were read a while ago: they are read anew")
        words = {POOL_SIZE_ANNOTATION: POOL_UNREAD if early else str(self._leases.pool_size)}
        if ours:
            self._leases.put(ours, {"holderIdentity": own, "renewTime": now}, None if self.aged else words)
        else:
            self._ours[name] = _Ours(sent, taken=True)
            try:
                self._take(name, lease, {"holderIdentity": own, "acquireTime": now, "renewTime": now}, words)
            except RefusedError as refused:
                if refused.status == HTTPStatus.CONFLICT:
                    del self._ours[name]
                raise
        self._confirmed[name], self.early = (sent, wall), early

    def _take(self, name: str, lease: Mapping[str, Any] | None, spec: dict[str, str], words: dict[str, str]) -> None:
        if lease and holder(lease) and not self._leases.abandoned(name):
            raise RefusedError(HTTPStatus.CONFLICT, f"permit {name} is held")
        if lease:
            self._leases.put(lease, spec, words)
        else:
            self._leases.create(name, spec, words)

    def give(self, kind: PermitKind, index: int, own: str) -> None:
        """Free our own permit; one that is another's by now is left alone."""
        name = self._leases.name(kind, index)
        lease = self._leases.seen.get(name)
        if lease and mine(lease, own):
            now = rfc3339(self._wall())
            used = {"acquireTime": now} if kind is PermitKind.HOURLY else {}  # its hour begins now
            # Before the request: one whose answer is lost may free the permit at any time, until a new
            # confirmation changes its version.
            self._confirmed.pop(name, None)
            self._leases.put(lease, {"holderIdentity": "", "renewTime": now, **used}, {LAST_HOLDER_ANNOTATION: own})

    def require(self, kind: PermitKind) -> None:
        """RefusedError 409 unless a permit of this kind was confirmed to be ours within five minutes."""
        prefix = self._leases.name(kind, 0)[:-1]
        ours = (n for n in self._confirmed if n.startswith(prefix) and not self._leases.unread(n))
        if not any(self._confirmed_s(name) < PERMIT_VALID_S for name in ours):
            raise RefusedError(HTTPStatus.CONFLICT, f"no {kind} permit was confirmed lately: it is asked for again")

    def unanswered(self) -> None:
        """Nobody knows whether what was asked for under a permit arrives: for a while the permit stays."""
        self._unanswered = self._clock()

    @property
    def pending(self) -> bool:
        """Whether something that was asked for under a permit in vain may still arrive."""
        return self._clock() - self._unanswered < PERMIT_VALID_S

    def unheard(self) -> None:
        """Nobody knows whether a permit that was asked for comes to be ours."""
        self._asked = self._clock()

    @property
    def awaited(self) -> bool:
        """Whether such a one has come by now or never will: whoever doesn't look for it never gives it back."""
        return self._asked is not None and self._clock() - self._asked >= PERMIT_VALID_S

    def succeeds(self) -> None:
        """Whatever the node holds is another life's: as after a start, nothing of it was taken or confirmed by us."""
        self._began, self._new, self._ours, self._confirmed = self._clock(), True, {}, {}
        self._asked = self._began

    def found(self, own: str) -> bool:
        """Whether one of our own that was out of sight is back, to be given back: one is read every two minutes."""
        if not self._unseen or self._clock() - self._sought < _SEEK_S:
            return False
        self._sought, name = self._clock(), self._unseen[0]
        lease = self._leases.seek(name)
        ours = lease is not None and mine(lease, own)
        hidden = ours and self._leases.hidden(name)
        self._unseen = [*self._unseen[1:], *([name] if hidden else [])]
        return ours and not hidden

    def _permit(self, name: str, own: str) -> Permit:
        leases, ours, now = self._leases, self._ours.get(name), self._clock()
        kind, index = leases.numbers[name]
        found = not ours.taken if ours else leases.hidden(name) and mine(leases.seen[name], own)
        who = own if ours else holder(leases.seen[name])  # one of a Node of our name that is gone is ours
        return Permit(
            kind,
            index,
            who,
            former=bool(ours) and holder(leases.seen[name]) != own,
            early=bool(who) and leases.unread(name),
            stale=bool(ours) and (leases.unread(name) or self._confirmed_s(name) > _CONFIRM_S),
            abandoned=bool(who) and not ours and leases.abandoned(name),
            hidden=leases.hidden(name),
            found=bool(ours) and found,
            inherited=found and now - self._began < PERMIT_VALID_S,
            taken_s=int(self._taken_s(leases.seen[name], ours, leases.watched_s(name))),
            had_s=int(now - ours.since) if ours else 0,
            unchanged_s=int(leases.unchanged_s(name)),
            last=str((leases.seen[name]["metadata"].get("annotations") or {}).get(LAST_HOLDER_ANNOTATION, "")),
            silent_s=int(max(0.0, self.told_at - at)) if (at := written_at(leases.seen[name])) else 0,
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
        return max(min(self.told_at, self._wall()) - written, watched_s) if written else watched_s

    def _age_s(self, lease: Mapping[str, Any]) -> float:
        """Seconds since somebody took it, by the clock of the node that did."""
        taken = unix_s((lease.get("spec") or {}).get("acquireTime"))
        return 0.0 if taken is None else self._wall() - taken
