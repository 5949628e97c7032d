"""What passes between the thread that judges and the thread that acts: two frozen values, each swapped whole.

The judging thread writes ``judged`` and reads ``acted``, the acting thread the reverse. Each reads a value once in its
round, so that all it concludes in that round is of one moment. Neither waits for the other.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from agent.diagnosis.judge import Orders
from agent.model.fault import Reset, Verdict
from agent.model.steps import Wait
from agent.model.world import Clients, Offer, World
from agent.remediation.case import Treatment
from agent.remediation.other_controllers import clients_paused
from agent.remediation.records import Attempt
from agent.runtime.drill_marks import valid


@dataclass(frozen=True, slots=True)
class Judged:
    """The judging thread's latest word."""

    verdict: Verdict | None = None  # None: until the faults of the agent's last life are known again
    released: float | None = None  # no process of ours holds a GPU, as the look that began then asks for
    clients: Clients = field(default_factory=dict)  # the processes on each GPU, as NVML read them lately
    pods: frozenset[str] = frozenset()  # UIDs of the pods whose processes were on GPUs


@dataclass(frozen=True, slots=True)
class Acted:
    """The acting thread's latest word: the Node as it was last read, and what was done about it."""

    started: bool = False  # the Node was read once
    stored: str | None = None  # what it bore then: the annotation of the agent's last life
    world: World | None = None  # as last read
    looked_at: float = 0.0  # when that was, Unix seconds
    look_began: float = 0.0  # and when it had begun, monotonic seconds
    drill: str | None = None  # the drill's annotation that may be believed
    keep_off: str = ""  # why no process of ours may hold a GPU now
    aside: bool = False  # for others
    resets: Mapping[str, Reset] = field(default_factory=dict)  # GPU UUID → our reset that is done
    failed_resets: Mapping[str, Attempt] = field(default_factory=dict)  # by the faults' ids: they cured nothing
    workloads: Mapping[str, str] = field(default_factory=dict)  # pod UID → namespace/Kind/name
    treatment: Treatment | None = None  # what the last plan was for
    steps: tuple[str, ...] = ()  # done in the last round that did anything
    waits: tuple[Wait, ...] = (Wait("the Node was not read yet"),)
    done: Mapping[str, int] = field(default_factory=dict)  # steps since the agent's start, by kind
    failed: Mapping[str, int] = field(default_factory=dict)  # looks and steps that failed, by kind
    failures: int = 0  # rounds in a row that failed
    lacks: tuple[Wait, ...] | None = None  # what the mode needs and the agent may not do; None: not known yet
    requests: Mapping[str, int] = field(default_factory=dict)  # to the API server, by HTTP method
    checkpoints: Mapping[str, int] = field(default_factory=dict)  # of evicted pods, by how they ended
    checkpoint_wait_s: float = 0.0
    look_s: float = 0.0  # how long the reads before the last steps took

    def orders(self, wall: float) -> Orders:
        """What the Node says to the judge; ``wall`` is Unix seconds."""
        if self.world is None:
            return Orders()
        world = self.world
        hidden = self.keep_off or clients_paused(world.labels)
        return Orders(
            world.labels,
            self.workloads,
            world.dismissed,
            self.resets,
            valid(self.drill, wall),
            Offer() if hidden else world.offer,
            self.aside,
        )


class Exchange:
    """The two values, and the bell that the judging thread rings."""

    def __init__(self) -> None:
        self.judged = Judged()
        self.acted = Acted()
        self.news = threading.Event()  # the acting thread looks at once
