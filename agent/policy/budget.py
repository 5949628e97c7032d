"""May this node withdraw: how many slots the pool has, and which one is free."""

from __future__ import annotations

from agent.world import SlotKind, World


def slot_limit(setting: int | str, pool_size: int) -> int:
    """How many nodes may hold a slot; a share is rounded down, and at least 1."""
    if isinstance(setting, int):
        return setting
    return max(1, pool_size * int(setting.rstrip("%")) // 100)


def free_slot(world: World, kind: SlotKind, setting: int | str) -> int | None:
    """The lowest free slot's number, or None if the budget is spent or was not read.

    Slots held beyond the limit (it was lowered) take one from those that may be given out, so that
    two nodes that ask at once still can't exceed it: each number has one Lease.
    """
    if world.slots is None:
        return None
    limit = slot_limit(setting, world.pool_size)
    held = {slot.index for slot in world.slots if slot.kind is kind and slot.holder}
    beyond = sum(index >= limit for index in held)
    return next((index for index in range(limit - beyond) if index not in held), None)
