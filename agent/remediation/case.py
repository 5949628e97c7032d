"""A node's case, and what is to be done about it: for which faults, by which remedy, with which other GPUs. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from agent.config.settings import Config
from agent.model.fault import RELAPSING, Fault, Sets, Verdict
from agent.model.remedy import Remedy
from agent.model.steps import Step
from agent.model.world import Local, World
from agent.remediation.records import Records

Outcome = tuple[Records, tuple[Step, ...]]  # the records as they are to be written, and what to do


@dataclass(frozen=True, slots=True)
class Case:
    """All that a plan is made from."""

    verdict: Verdict
    world: World
    config: Config
    local: Local

    @property
    def forgotten(self) -> bool:
        """Whether others have had the GPUs for so long that they seem to have forgotten to say that they are done."""
        return self.local.aside_s > self.config.policy.aside_s


@dataclass(frozen=True, slots=True)
class Treatment:
    """Why the node is to be out of service, and what is to bring it back; a node in service has none."""

    faults: tuple[Fault, ...]  # the fatal ones, or else those of idle GPUs; never none
    remedy: (
        Remedy  # what its pods make way for: the worst of the faults', or the harder one that the repair has come to
    )
    linked: Sets  # which GPUs are to be reset together
    idle: bool = False  # it is for degraded faults, now that nobody uses their GPUs
    replaces: bool = False  # it recurred so often that no other reset or reboot is made

    @property
    def gpus(self) -> frozenset[str]:
        """UUIDs of the GPUs that are to be cured; empty if one of them isn't known."""
        uuids = frozenset(fault.uuid for fault in self.faults)
        return frozenset() if "" in uuids else uuids

    @property
    def reset_set(self) -> frozenset[str]:
        """UUIDs of those that a reset must name: with them all that can only be reset together with one of them."""
        return self.gpus.union(*(self.linked.get(uuid, frozenset()) for uuid in self.gpus))

    @property
    def incident(self) -> str:
        """Which one it is: what was seen first of it."""
        since, first = min((fault.since, fault.finding.id) for fault in self.faults)
        return f"{since:.3f} {first}"

    @property
    def held(self) -> tuple[Fault, ...]:
        """The faults that only a person may treat; that it relapses is none where the answer is a replacement."""
        persons = (fault for fault in self.faults if fault.finding.remedy is Remedy.CONTACT_SUPPORT)
        return tuple(fault for fault in persons if not (self.replaces and fault.finding.rule == RELAPSING))

    @property
    def mildest(self) -> Remedy:
        """The mildest that is worth a try."""
        return Remedy.REPLACE_NODE if self.replaces else self.remedy

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
