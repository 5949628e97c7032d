"""For how long a node that waits, for a permit or a person, lets the API server alone: a whole fleet may, for weeks."""

from __future__ import annotations

import random
from collections.abc import Iterable

from agent.actions.pool import share_s
from agent.config.settings import Config
from agent.model.fault import Verdict
from agent.model.steps import (
    Announce,
    AskCheckpoint,
    Delete,
    Evict,
    On,
    Report,
    Retaint,
    StartJob,
    Step,
    TakePermit,
    Wait,
)
from agent.model.world import World
from agent.remediation.collect import COLLECT
from agent.remediation.situation import under_way

LONGEST_S = 60.0  # a pause of all agents is heard within a minute
_SHORTEST_S = 5.0

PUT_OFF = Wait("the budget is spent, and the pool is large: the Node gets its report in its turn")


def spent(steps: Iterable[Step]) -> bool:
    return any(isinstance(step, Wait) and step.on is On.PERMIT for step in steps)


def changes(step: Step, waits: bool) -> bool:
    """Whether another look may find more to do once a step is done, on a node that ``waits`` for a permit or not.

    An eviction's effect is not there at once, and a refused one is asked again in a while. What a permit was taken for
    stands in the same plan. An Event changes nothing, and a report nothing of what a permit is waited for.
    """
    still = isinstance(step, AskCheckpoint | Evict | Delete | TakePermit | Announce)
    return not still and not (waits and isinstance(step, Report))


def is_spare(step: Step) -> bool:
    """Whether the steps after it are done though it was refused: an Event, or the Job that collects evidence."""
    return isinstance(step, Announce) or (isinstance(step, StartJob) and step.remedy == COLLECT)


def gathers_s_of(verdict: Verdict, config: Config, now: float) -> float:
    """Until the faults had their time to gather."""
    began = [fault.began for fault in verdict.fatal]
    return min(began) + config.drain.gather_s - now if began else 0.0


def put_off_s(world: World, acts: Iterable[Step], waited_s: float) -> float:
    """Until the Node of one that has waited for a permit so long is told; 0: now.

    Nodes of a large pool that all wait don't write at once.
    """
    writes = [*acts]
    if not writes or not all(isinstance(step, Report | Retaint | Announce) for step in writes):
        return 0.0
    own_s = int(share_s(world.pool_size)) * random.Random(world.holder).random()  # noqa: S311 - jitter, no secret
    return max(0.0, own_s - waited_s)


def goes_on(world: World, acts: Iterable[Step]) -> bool:
    """Whether a node that bears our taint or a permit is to be looked at again soon."""
    return under_way(world) or any(not isinstance(step, TakePermit) for step in acts)


def pause_s(world: World | None, standing: bool, waits: Iterable[Wait]) -> float:
    """Until the next look. A withdrawn node that waits for a permit to drain looks the sooner the smaller its pool."""
    if world is None or not (standing and spent(waits)):
        return LONGEST_S
    return min(max(_SHORTEST_S, share_s(world.pool_size)), LONGEST_S)
