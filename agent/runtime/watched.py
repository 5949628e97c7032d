"""What this life of the agent watched of the last repair, by its own clock: the node's may step at any time."""

from __future__ import annotations

from dataclasses import dataclass

from agent.model.fault import Reset
from agent.model.remedy import Remedy
from agent.model.world import World
from agent.remediation.other_controllers import upgrading
from agent.remediation.records import Attempt, Records, Stage, Validation


@dataclass(frozen=True, slots=True)
class Watched:
    """Times are monotonic seconds."""

    mark: tuple[object, ...] = ()  # the last attempt or check, and how far it is
    since: float = 0.0  # when this life first saw it so, with its GPUs in sight
    sees_from: float = 0.0  # since when the GPUs were nobody else's
    unended: float = 0.0  # when its Job had surely not ended; 0: this life didn't look before it had
    reset: Reset | None = None  # of ours that is done


def watched(
    before: Watched, records: Records, world: World, began: float, now: float, wall: float, aside: bool
) -> Watched:
    """After a look that began at ``began`` and ended ``now``; ``wall`` is the same as Unix seconds.

    ``aside``: until this look the GPUs were somebody else's. What is to show on them has all its time from then on.
    """
    away = aside or bool(upgrading(world.labels))
    last = records.begun[-1] if records.begun else None
    mark: tuple[object, ...] = _mark(last) if last else ()
    since = before.since if mark == before.mark and not away else now
    sees_from = now if away else before.sees_from
    same = bool(mark and before.mark) and mark[0] == before.mark[0]
    if not isinstance(last, Attempt) or last.remedy is not Remedy.RESET_GPU:
        return Watched(mark, since, sees_from)
    unended = began if _under_way(last, world) else before.unended if same else 0.0
    if last.stage is not Stage.DONE:
        return Watched(mark, since, sees_from, unended)
    reset = before.reset if same else None
    return Watched(mark, since, sees_from, unended, reset or Reset(last.job, _ended(last, unended, now, wall), now))


def _mark(last: Attempt | Validation) -> tuple[object, ...]:
    if isinstance(last, Validation):
        return last.run, last.stage, last.blocked_at > 0
    return last.job, last.stage


def _under_way(last: Attempt, world: World) -> bool:
    job = next((job for job in world.jobs or () if job.name == last.job), None)
    if job is None:
        return world.jobs is not None and last.stage is Stage.RESERVED
    return job.state == "active"


def _ended(last: Attempt, unended: float, now: float, wall: float) -> float:
    """When its container ended. The node's wall clock is believed only within what this life saw by its own.

    0 where this life watched nothing: then whatever it saw itself may have come after the reset.
    """
    by_the_wall = now - (wall - last.acted_at)
    return by_the_wall if unended and unended <= by_the_wall <= now else unended
