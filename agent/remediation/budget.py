"""May this node withdraw: how many permits the pool has, and which one is free."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import islice
from zlib import crc32

from agent.config.settings import Budget
from agent.model.names import LARGE_POOL, PERMIT_VALID_S, SLOT_LEASE
from agent.model.steps import GivePermit, On, TakePermit, Wait
from agent.model.world import Permit, PermitKind, World

_HOUR_S = 3600
_NAMED = 5
_AT_ONCE = 16  # new Leases that nodes which turn sick at once choose from
TRIES = 3  # of those that one node asks for before it looks again
_AWAY_S = 600  # whoever is there confirms its permit every two minutes
_OVER_S = 960  # the longest grace that counts, a minute, and the time that a request may take to arrive
_OTHERS_FIRST_S = 300  # whoever waits for a permit looks once a minute or so


def allowed(world: World, kind: PermitKind, budget: Budget) -> int:
    """How many nodes of this pool may hold a permit of this kind."""
    if kind is PermitKind.HOURLY:
        return budget.per_hour
    return (budget.withdrawn if kind is PermitKind.WITHDRAWN else budget.draining)(world.pool_size)


def needed(world: World, budget: Budget) -> tuple[PermitKind, ...]:
    """What a withdrawal must still take, in this order."""
    wanted = ((PermitKind.HOURLY,) if budget.per_hour and not world.withdrawn else ()) + (PermitKind.WITHDRAWN,)
    return tuple(kind for kind in wanted if not world.held(kind))


def given(world: World, *kinds: PermitKind) -> tuple[GivePermit, ...]:
    """Those of these that the node holds, to be given back."""
    return tuple(GivePermit(kind, permit.index) for kind in kinds if (permit := world.held(kind)))


def free_permit(world: World, kind: PermitKind, budget: Budget, left_free: int = 0) -> int | None:
    """The lowest free permit's number, or None if the budget is spent or was not read.

    Each number has one Lease, and whoever takes number n has seen all below it taken: so two nodes that ask at once
    can't exceed the budget. What is out of service otherwise (nodes that are NotReady, cordoned, tainted by others or
    by us without a permit, permits beyond a limit that was lowered) counts as well. A node that bears our taint already
    is counted by all others as it is: its permit takes nobody out.
    """
    if world.permits is None or (exceeds(world, kind) and world.names.new and world.permits):
        return None  # the first one of a name is taken for all to see, and goes back at once
    others = _others(world, kind) if exceeds(world, kind) else ()
    left, held = allowed(world, kind, budget) - len(others) - left_free, _held(world, kind)
    return next((index for index in range(left) if index not in held), None) if len(held) < left else None


def taken_early(world: World, budget: Budget, left_free: int) -> tuple[TakePermit, ...]:
    """Free withdrawn permits, one of which is taken by what is known of a large pool before it is read.

    Where they are fewer than ``TRIES``, there are no more: whoever gets none need not read the pool. Not the lowest: of
    many that turn sick at once each tries others, among so few that no more Leases are made than are needed. The number
    of one, and those held above it, are within the budget. So whoever holds the highest vouches for all below.
    """
    kind = PermitKind.WITHDRAWN
    large = world.aged and world.pool_size >= LARGE_POOL and world.permits is not None and not world.names.double
    if not large or world.withdrawn or world.held(kind) or budget.per_hour or left_free:
        return ()
    taken, left = _held(world, kind), allowed(world, kind, budget) - len(world.out)
    held, known = sorted(taken), sum(permit.kind is kind for permit in world.permits or ())
    free = (index for index in range(left) if index not in taken and index + _above(held, index) < left)
    choice = [*islice(free, known + _AT_ONCE)]
    first = crc32(world.holder.encode()) % max(len(choice), 1)
    return tuple(TakePermit(kind, index, early=True) for index in (*choice[first:], *choice[:first])[:TRIES])


def left_for_others(world: World, budget: Budget) -> bool:
    """Whether a node in service that turns fatal finds a withdrawn permit free beside ours."""
    kind = PermitKind.WITHDRAWN
    return len(_held(world, kind)) + len(_others(world, kind)) < allowed(world, kind, budget)


def exceeds(world: World, kind: PermitKind) -> bool:
    """Whether such a permit, taken, makes one node more than without it. An hourly one counts under its name alone."""
    return kind is PermitKind.DRAINING or (kind is PermitKind.WITHDRAWN and not world.withdrawn)


def _others(world: World, kind: PermitKind) -> frozenset[str]:
    """The nodes beside those that hold such a permit of our name: out of service otherwise, or under another name."""
    named = {p.holder.partition("/")[0] for p in world.permits or () if p.kind is kind and not p.abandoned}
    elsewhere = frozenset(permit.holder for permit in world.names.others if permit.kind is kind) - named
    return elsewhere | world.out if kind is PermitKind.WITHDRAWN else elsewhere


def unsure(world: World, kind: PermitKind) -> bool:
    """Whether all permits are to be read once more before anything is done under ours: then it is taken alone."""
    held = world.held(kind)
    return world.names.double and exceeds(world, kind) and not (held and held.firm)


def _held(world: World, kind: PermitKind) -> set[int]:
    return {permit.index for permit in world.permits or () if permit.kind is kind and _counts(permit)}


def beyond(world: World, kind: PermitKind, budget: Budget) -> bool:
    """Whether our permit, not used yet, would exceed the budget, as all permits and the pool show it by now.

    It is that of the Node object before this one, of which no taint is left, while others may be out of service since.
    Or the pool has two names, and a place under the other one was taken at the same time. Or it was taken early: then
    its number counts, and those above it, but for the early ones, which count below themselves.
    """
    held = world.held(kind)
    if held is None or held.used or not exceeds(world, kind):
        return False
    if not (held.former or held.early or world.names.double):
        return False
    others = [p for p in world.permits or () if p.kind is kind and p.holder != world.holder and _counts(p)]
    above = sum(p.index > held.index and not p.early for p in others)
    taken = held.index + above if held.early and not held.former else len(others)
    return world.names.new or taken >= allowed(world, kind, budget) - len(_others(world, kind))


def _above(held: Sequence[int], index: int) -> int:
    return len(held) - bisect_right(held, index)


def put_away(world: World) -> tuple[GivePermit, ...]:
    """The node's own permits under other names go back once nothing that was asked for under them goes on.

    A withdrawn node keeps the one for that until it has one of ours.
    """
    kept = PermitKind.WITHDRAWN if world.withdrawn and not world.held(PermitKind.WITHDRAWN) else None
    done = (permit for permit in world.names.ours if permit.unchanged_s >= _OVER_S and permit.kind is not kept)
    return tuple(GivePermit(permit.kind, permit.index, permit.pool) for permit in done)


def _counts(permit: Permit) -> bool:
    """An hourly permit rests for an hour after its use: of one that was never given back, at the last possible time."""
    rests_s = _HOUR_S + (PERMIT_VALID_S if permit.holder else 0)
    held = permit.hidden or (bool(permit.holder) and not permit.abandoned)
    return held or (permit.kind is PermitKind.HOURLY and permit.taken_s < rests_s)


def spent(world: World, kind: PermitKind, budget: Budget) -> str:
    """Why there is no permit, in a sentence."""
    if world.permits is None:
        return f"the cluster's {kind} permits were not read: nothing is withdrawn without a permit"
    limit = allowed(world, kind, budget)
    if kind is PermitKind.HOURLY:
        return f"the budget is spent: {limit} withdrawals an hour allowed"
    if world.names.new and world.permits and exceeds(world, kind):
        return "the pool's name is new, and there are permits of another one: for five minutes none is taken"
    ours = [permit for permit in world.permits if permit.kind is kind]
    holders = [permit.holder.split("/")[0] for permit in ours if permit.holder and not permit.abandoned]
    elsewhere = sorted(_others(world, kind) - world.out)
    holders += elsewhere
    by = f", by {some(holders)}" if holders else ""
    sentence = (
        f"the budget is spent: {len(holders)} of {limit} taken{by} ({kind} permits, pool of {world.pool_size} nodes)"
    )
    if elsewhere:
        sentence += f"; under another name of the pool: {some(elsewhere)}"
    if kind is PermitKind.WITHDRAWN and world.out:
        sentence += f"; out of service otherwise: {some(sorted(world.out))}"
    return sentence


def some(nodes: Sequence[str]) -> str:
    """The first five: a pool may be large."""
    more = f" and {len(nodes) - _NAMED} more" if len(nodes) > _NAMED else ""
    return f"{', '.join(nodes[:_NAMED])}{more}"


def unwatched(world: World) -> bool:
    """Whether an opt-out may have come and gone before this life of the agent: nobody held the node's permit for long.

    A label that is taken off leaves no trace on the Node, so that only somebody who was there knows of it.
    """
    held = world.held(PermitKind.WITHDRAWN)
    return held is None or held.silent_s >= _AWAY_S


def lately(world: World, kind: PermitKind, index: int) -> bool:
    """Whether others may still want this permit: it was held a moment ago."""
    known = {permit.index: permit for permit in world.permits or () if permit.kind is kind}
    return index in known and known[index].unchanged_s < _OTHERS_FIRST_S


def hidden(world: World, budget: Budget) -> tuple[Wait, ...]:
    """Permits that nobody can take until a person deletes their Leases."""
    names = (SLOT_LEASE.format(kind=p.kind, pool=budget.pool, index=p.index) for p in world.permits or () if p.hidden)
    why = "lacks its labels and counts as held: a person must delete it"
    return tuple(Wait(f"Lease {name} {why}", On.PERMIT) for name in names)
