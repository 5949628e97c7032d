"""A node's case, and what is to be done about it: for which faults, by which remedy, with which other GPUs. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from agent.config.settings import Config
from agent.model.fault import Fault, Sets, Verdict
from agent.model.remedy import Remedy
from agent.model.world import Local, World
from agent.remediation.records import Attempt


@dataclass(frozen=True, slots=True)
class Case:
    """All that a plan is made from."""

    verdict: Verdict
    world: World
    config: Config
    local: Local

    @property
    def at(self) -> float:
        """Unix seconds of the verdict."""
        return self.verdict.at


@dataclass(frozen=True, slots=True)
class Treatment:
    """Why the node is to be out of service, and what is to bring it back; a node in service has none."""

    faults: tuple[Fault, ...]  # the fatal ones, or else those of idle GPUs; never none
    remedy: (
        Remedy  # what its pods make way for: the worst of the faults', or the harder one that the repair has come to
    )
    linked: Sets  # which GPUs are to be reset together
    idle: bool = False  # it is for degraded faults, now that nobody uses their GPUs

    @property
    def gpus(self) -> frozenset[str]:
        """UUIDs of the GPUs that are to be mended; empty if one of them isn't known."""
        return bad_gpus(self.faults)

    @property
    def reset_set(self) -> frozenset[str]:
        return reset_set(self.faults, self.linked)

    @property
    def unproved(self) -> tuple[Fault, ...]:
        """The faults whose cure is yet to be proved."""
        return tuple(fault for fault in self.faults if not fault.proved)

    @property
    def outstanding(self) -> Treatment:
        """Of the faults whose cure is yet to be proved; the whole one if there is none."""
        if not (left := self.unproved):
            return self
        return replace(self, faults=left, remedy=max((f.finding.remedy for f in left), key=lambda one: one.rank))


def treated(verdict: Verdict, idle: tuple[Fault, ...] = ()) -> Treatment | None:
    """For the fatal faults, else for the ``idle`` ones: the degraded whose GPUs nobody uses."""
    if verdict.fatal:
        return Treatment(verdict.fatal, verdict.remedy, verdict.linked)
    return Treatment(idle, Remedy.RESET_GPU, verdict.linked, idle=True) if idle else None


def bad_gpus(faults: Iterable[Fault]) -> frozenset[str]:
    """UUIDs of the GPUs that have these faults; empty if one of them isn't known."""
    uuids = frozenset(fault.uuid for fault in faults)
    return frozenset() if "" in uuids else uuids


def reset_set(faults: Iterable[Fault], linked: Sets) -> frozenset[str]:
    """UUIDs of the GPUs that a reset must name: the bad ones, and those that can only be reset together with them."""
    bad = bad_gpus(faults)
    return bad.union(*(linked.get(uuid, frozenset()) for uuid in bad))


def in_force(together: Sets, live: Attempt | None, template: str | None) -> Sets:
    """A reset that is reserved keeps its GPUs; where none is configured no healthy GPU's pods make way for it."""
    if live and live.remedy is Remedy.RESET_GPU:
        return {**together, **dict.fromkeys(live.uuids, frozenset(live.along))}
    return together if template else {}
