"""What is shown to the outside: one frozen value, swapped whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from agent.model.fault import Verdict
from agent.model.observation import Observation
from agent.model.steps import Wait
from agent.model.world import PermitKind
from agent.remediation.case import Treatment
from agent.remediation.ledger import Ledger


@dataclass(frozen=True, slots=True)
class SourceView:
    """A source process as the agent sees it."""

    name: str
    up: bool  # it runs, spoke lately, and says that it can see
    age_s: float | None  # since it last said anything; None: never
    starts: int
    garbage: int  # lines that were no source lines
    pid: int | None
    trouble: str
    version: str = ""  # of DCGM's engine
    poll_s: float | None = None  # how long its polls take, one that is under way counted so far; None: it doesn't say


@dataclass(frozen=True, slots=True)
class PermitsView:
    """The pool's permits of one kind, as this node last read them."""

    kind: PermitKind
    held: bool  # by this node
    taken: int  # by all nodes
    allowed: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that is shown to the outside: swapped whole, never changed."""

    node: str
    mode: str
    verdict: Verdict
    readings: Mapping[str, Observation] = field(default_factory=dict)
    disagreements: tuple[tuple[str, str], ...] = ()  # GPU and signal that NVML and DCGM read differently now
    failed_reads: Mapping[tuple[str, str], int] = field(default_factory=dict)  # polls in which a signal was unreadable
    xids: Mapping[tuple[str, int], tuple[int, float]] = field(default_factory=dict)  # count, last (Unix seconds)
    sources: tuple[SourceView, ...] = ()
    steps: tuple[str, ...] = ()  # done in the last round that did anything
    waits: tuple[Wait, ...] = ()
    coming: tuple[str, ...] = ()  # what will be waited for once the node is cured, in words
    stage: str = ""  # the Node's state label as last read: draining, drained, repairing …
    treatment: Treatment | None = None  # what the last plan is for; None: the node is to be in service
    withdrawn: bool | None = None  # whether our hard taint stands; None: the Node was not read yet
    degraded_effect: str = ""  # of our taint on a degraded node, while it stands
    withdrawn_since: float | None = None  # when its permit was taken, Unix seconds
    fences: tuple[str, ...] = ()  # each in words
    permits: tuple[PermitsView, ...] = ()  # empty: not asked for, because this node needs none
    done: Mapping[str, int] = field(default_factory=dict)  # steps done since start, by kind
    failed: Mapping[str, int] = field(default_factory=dict)  # rounds and steps that failed, by kind
    requests: Mapping[str, int] = field(default_factory=dict)  # to the API server since start, by HTTP method
    checkpoints: Mapping[str, int] = field(default_factory=dict)  # evicted pods that declared one, by how it ended
    checkpoint_wait_s: float = 0.0
    resets: frozenset[str] = frozenset()  # ids of degraded faults whose GPUs are reset once nobody uses them
    keep_off: str = ""  # why no process of ours may hold a GPU now
    api_failures: int = 0  # rounds in a row that failed: the next one waits the longer
    look_s: float = 0.0  # how long the reads before the last steps took
    ledger: Ledger = field(default_factory=Ledger)
    ledger_at: float = 0.0  # Unix seconds by the ledger's clock: until when an incident that has not ended counts
    act_age_s: float | None = None  # since the act loop last gave a sign; None: there is none
