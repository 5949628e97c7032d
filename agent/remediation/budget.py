"""May this node withdraw: how many slots the pool has, and which one is free."""

from __future__ import annotations

from agent.config.settings import Budget
from agent.model.names import PERMIT_VALID_S
from agent.model.steps import GiveSlot
from agent.model.world import Slot, SlotKind, World

_HOUR_S = 3600


def slot_limit(setting: int | str, pool_size: int) -> int:
    """How many nodes may hold a slot; a share is rounded down, and at least 1."""
    if isinstance(setting, int):
        return setting
    return max(1, pool_size * int(setting.rstrip("%")) // 100)


def allowed(world: World, kind: SlotKind, budget: Budget) -> int:
    """How many nodes of this pool may hold a slot of this kind."""
    if kind is SlotKind.HOURLY:
        return budget.per_hour
    return slot_limit(budget.max_withdrawn if kind is SlotKind.WITHDRAWN else budget.max_draining, world.pool_size)


def needed(world: World, budget: Budget) -> tuple[SlotKind, ...]:
    """What a withdrawal must still take, in this order."""
    wanted = ((SlotKind.HOURLY,) if budget.per_hour and not world.withdrawn else ()) + (SlotKind.WITHDRAWN,)
    return tuple(kind for kind in wanted if not world.held(kind))


def given(world: World, *kinds: SlotKind) -> tuple[GiveSlot, ...]:
    """Those of these that the node holds, to be given back."""
    return tuple(GiveSlot(kind, slot.index) for kind in kinds if (slot := world.held(kind)))


def free_slot(world: World, kind: SlotKind, budget: Budget, left_free: int = 0) -> int | None:
    """The lowest free slot's number, or None if the budget is spent or was not read.

    Each number has one Lease, and whoever takes number n has seen all below it taken: so two nodes that ask at once
    can't exceed the budget. What is out of service otherwise (nodes that are NotReady, cordoned or tainted by others,
    slots beyond a limit that was lowered) counts as well.
    """
    if world.slots is None:
        return None
    left = allowed(world, kind, budget) - (len(world.out) if kind is SlotKind.WITHDRAWN else 0) - left_free
    held = {slot.index for slot in world.slots if slot.kind is kind and _counts(slot)}
    return next((index for index in range(left) if index not in held), None) if len(held) < left else None


def _counts(slot: Slot) -> bool:
    """An hourly slot rests for an hour after its use: of one that was never given back, at the last possible time."""
    rests_s = _HOUR_S + (PERMIT_VALID_S if slot.holder else 0)
    return (bool(slot.holder) and not slot.abandoned) or (slot.kind is SlotKind.HOURLY and slot.taken_s < rests_s)


def spent(world: World, kind: SlotKind, budget: Budget) -> str:
    """Why there is no slot, in a sentence."""
    if world.slots is None:
        return f"the cluster's {kind} slots were not read: nothing is withdrawn without a permit"
    limit = allowed(world, kind, budget)
    if kind is SlotKind.HOURLY:
        return f"the budget is spent: {limit} withdrawals an hour allowed"
    said = f"the budget is spent: {limit} {kind} of {world.pool_size} nodes allowed"
    ours = [slot for slot in world.slots if slot.kind is kind]
    holders = [slot.holder.split("/")[0] for slot in ours if slot.holder and not slot.abandoned]
    if holders:
        said += f", held by {', '.join(holders)}"
    if kind is SlotKind.WITHDRAWN and world.out:
        said += f"; out of service otherwise: {', '.join(sorted(world.out)[:5])}{' …' if len(world.out) > 5 else ''}"
    return said
