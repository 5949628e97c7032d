"""May this node withdraw: how many slots the pool has, and which one is free."""

from __future__ import annotations

from agent.config import Budget
from agent.world import Slot, SlotKind, World


def slot_limit(setting: int | str, pool_size: int) -> int:
    """How many nodes may hold a slot; a share is rounded down, and at least 1."""
    if isinstance(setting, int):
        return setting
    return max(1, pool_size * int(setting.rstrip("%")) // 100)


def allowed(world: World, kind: SlotKind, budget: Budget) -> int:
    """How many nodes of this pool may hold a slot of this kind."""
    setting = budget.max_withdrawn if kind is SlotKind.WITHDRAWN else budget.max_draining
    return slot_limit(setting, world.pool_size)


def free_slot(world: World, kind: SlotKind, budget: Budget) -> int | None:
    """The lowest free slot's number, or None if the budget is spent or was not read.

    Each number has one Lease, so two nodes that ask at once can't exceed the budget. What is out of service
    otherwise (nodes that are NotReady or cordoned, slots beyond a limit that was lowered) leaves fewer numbers.
    """
    if world.slots is None:
        return None
    limit = allowed(world, kind, budget)
    held = {slot.index for slot in world.slots if slot.kind is kind and slot.holder and not slot.abandoned}
    left = limit - sum(index >= limit for index in held)
    if kind is SlotKind.WITHDRAWN:
        left -= len(world.out)
        held |= {slot.index for slot in world.slots if slot.kind is kind and _cools(slot, limit, budget)}
    return next((index for index in range(left) if index not in held), None)


def _cools(slot: Slot, limit: int, budget: Budget) -> bool:
    """So many an hour for all slots is one in so long for each."""
    return bool(budget.per_hour) and slot.taken_s < 3600 * limit / budget.per_hour


def spent(world: World, kind: SlotKind, budget: Budget) -> str:
    """Why there is no slot, in a sentence."""
    if world.slots is None:
        return f"the cluster's {kind} slots were not read: nothing is withdrawn without a permit"
    limit = allowed(world, kind, budget)
    said = f"the budget is spent: {limit} {kind} of {world.pool_size} nodes allowed"
    ours = [slot for slot in world.slots if slot.kind is kind]
    holders = [slot.holder.split("/")[0] for slot in ours if slot.holder and not slot.abandoned]
    if holders:
        said += f", held by {', '.join(holders)}"
    if kind is SlotKind.WITHDRAWN and world.out:
        said += f"; out of service otherwise: {', '.join(sorted(world.out)[:5])}{' …' if len(world.out) > 5 else ''}"
    if kind is SlotKind.WITHDRAWN and any(not slot.holder and _cools(slot, limit, budget) for slot in ours):
        said += f"; {budget.per_hour} withdrawals an hour allowed"
    return said
