"""May this node withdraw: how many permits the pool has, and which one is free."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from zlib import crc32

from agent.config.settings import Budget
from agent.model.names import LARGE_POOL, PERMIT_VALID_S, SLOT_LEASE
from agent.model.steps import GivePermit, On, TakePermit, Wait
from agent.model.world import Permit, PermitKind, World

_HOUR_S = 3600
_NAMED = 5
_AT_ONCE = 16  # new Leases that nodes which turn sick at once choose from first
TRIES = 3  # of those that one node asks for before it looks again
_AWAY_S = 600  # whoever is there confirms its permit every two minutes
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
    if world.permits is None:
        return None
    out = world.out if kind is PermitKind.WITHDRAWN and not world.withdrawn else ()
    left, held = allowed(world, kind, budget) - len(out) - left_free, _held(world, kind)
    return next((index for index in range(left) if index not in held), None) if len(held) < left else None


def taken_early(world: World, budget: Budget, left_free: int) -> tuple[TakePermit, ...]:
    """Free withdrawn permits, one of which is taken by what is known of a large pool before it is read.

    Where they are fewer than ``TRIES``, there are no more: whoever gets none need not read the pool. Not the lowest: of
    many that turn sick at once each tries others. The first is among so few that no more Leases are made than are
    needed; whoever doesn't get that one is in a crowd, and tries any. The number of one, and those held above it, are
    within the budget. So whoever holds the highest vouches for all below.
    """
    kind = PermitKind.WITHDRAWN
    large = world.aged and world.pool_size >= LARGE_POOL and world.permits is not None
    if not large or world.withdrawn or world.held(kind) or budget.per_hour or left_free:
        return ()
    most = min(allowed(world, kind, budget), world.pool_size)  # a limit without end is written as any number
    taken, left = _held(world, kind), most - len(world.out)
    held, known = sorted(taken), sum(permit.kind is kind for permit in world.permits or ())

    def free(start: int = 0) -> Iterator[int]:
        around = chain(range(start, left), range(start))
        return (index for index in around if index not in taken and index + _above(held, index) < left)

    if not (few := [*islice(free(), known + _AT_ONCE)]):
        return ()
    first, *others = (crc32(f"{n} {world.holder}".encode()) for n in range(TRIES))
    choice = dict.fromkeys((few[first % len(few)], *(next(free(start % left)) for start in others), *few))
    return tuple(TakePermit(kind, index, early=True) for index in [*choice][:TRIES])


def left_for_others(world: World, budget: Budget) -> bool:
    """Whether a node in service that turns fatal finds a withdrawn permit free beside ours."""
    kind = PermitKind.WITHDRAWN
    return len(_held(world, kind)) + len(world.out) < allowed(world, kind, budget)


def _held(world: World, kind: PermitKind) -> set[int]:
    return {permit.index for permit in world.permits or () if permit.kind is kind and _counts(permit)}


def beyond(world: World, budget: Budget) -> bool:
    """Whether our permit would exceed the budget, now that the pool was read, and no taint of ours is on the node.

    It is that of the Node object before this one, and others may be out of service since. Or it was taken early: then
    its number counts, and those above it, but for the early ones, which count below themselves.
    """
    held = world.held(PermitKind.WITHDRAWN)
    if held is None or not (held.former or held.early) or world.withdrawn:
        return False
    others = [p for p in world.permits or () if p.kind is held.kind and p.holder != world.holder and _counts(p)]
    left = allowed(world, PermitKind.WITHDRAWN, budget) - len(world.out)
    above = sum(p.index > held.index and not p.early for p in others)
    return (len(others) if held.former else held.index + above) >= left


def _above(held: Sequence[int], index: int) -> int:
    return len(held) - bisect_right(held, index)


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
    ours = [permit for permit in world.permits if permit.kind is kind]
    holders = [permit.holder.split("/")[0] for permit in ours if permit.holder and not permit.abandoned]
    by = f", by {some(holders)}" if holders else ""
    sentence = (
        f"the budget is spent: {len(holders)} of {limit} taken{by} ({kind} permits, pool of {world.pool_size} nodes)"
    )
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
