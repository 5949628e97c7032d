"""What a repair leaves written on the Node: its attempts, the check after them, the labels changed for their time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from agent.model.remedy import Remedy


class Kind(StrEnum):
    """Who makes the check before the return: with what its name begins."""

    JOB = "gpu-health-check-"
    DIAGNOSIS = "gpu-health-diagnosis-"  # DCGM's, run by the agent itself


class Stage(StrEnum):
    RESERVED = "reserved"  # written down; its Job may or may not exist
    STARTED = "started"  # its Job was seen, or the diagnosis
    DONE = "done"  # it ended well; the cure is still to be proved
    FAILED = "failed"

    @property
    def live(self) -> bool:
        """Whether its end is awaited."""
        return self in (Stage.RESERVED, Stage.STARTED)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One remedy, tried once."""

    remedy: Remedy
    number: int  # of this remedy in this incident, from 1
    job: str  # its name
    uuids: tuple[str, ...]  # of the GPUs that it is for
    boot_id: str  # when it was reserved
    stage: Stage
    acted_at: float = 0.0  # Unix seconds: what was seen later was not cured by it
    ended_at: int = 0  # when that was written down
    said: str = ""  # how it failed
    final: bool = False  # trying the same again can't help
    along: tuple[str, ...] = ()  # UUIDs of the GPUs that a reset must name as well: they are linked to those

    @property
    def what(self) -> str:
        """For people."""
        return f"{self.remedy}, attempt {self.number} (Job {self.job})"

    @property
    def gpus(self) -> tuple[str, ...]:
        """UUIDs of all that it acts on."""
        return (*self.uuids, *self.along)


@dataclass(frozen=True, slots=True)
class Validation:
    """The check that a cured node must pass before it returns."""

    kind: Kind
    name: str
    uuids: tuple[str, ...] = ()  # of the GPUs that it is of; empty: all
    boot_id: str = ""  # when it was reserved
    number: int = 1  # of the run, of a diagnosis that the agent's end cut off
    stage: Stage = Stage.RESERVED
    blocked_at: float = 0.0  # Unix seconds since when a diagnosis can't be run; 0: it can, or was not tried
    ended_at: int = 0
    said: str = ""  # how it failed

    @property
    def run(self) -> str:
        """The name of this run of the diagnosis: what an earlier one found proves nothing for a later."""
        return f"{self.name}-{self.number}"

    @property
    def what(self) -> str:
        """For people."""
        return f"check, attempt {self.number} ({'DCGM' if self.kind is Kind.DIAGNOSIS else f'Job {self.name}'})"


@dataclass(frozen=True, slots=True)
class Begun:
    """A drain: for which remedy, and since when pods are asked to leave for it."""

    remedy: Remedy
    at: int  # Unix seconds: told
    returns: Mapping[str, int] = field(default_factory=dict)  # workload → how often it came back
    boot_id: str = ""  # the boot then; empty of a node that tells of none
    boot_s: float = 0.0  # monotonic seconds in that boot; 0: an older agent's word
    asked: Mapping[str, int] = field(default_factory=dict)  # pod UID → when it was asked to save, monotonic seconds


@dataclass(frozen=True, slots=True)
class Idle:
    """What is known of resets of idle GPUs; it outlives the node's return."""

    withdrawn: bool = False  # the hard taint stands for one, or did until somebody took it off
    times: tuple[int, ...] = ()  # of withdrawals for one lately: when each ended, or the one that stands began; Unix s
    failed_resets: Mapping[str, Attempt] = field(default_factory=dict)  # by the ids of the faults that stand


@dataclass(frozen=True, slots=True)
class Records:
    """One incident's drain, its attempts, oldest first, whether gpu-operator's operands are paused, and the check."""

    attempts: tuple[Attempt, ...] = ()
    paused: bool = False
    drain: Begun | None = None
    idle: Idle = field(default_factory=Idle)
    validation: Validation | None = None

    def latest(self, attempt: Attempt) -> Records:
        """With the last attempt as it is now."""
        return replace(self, attempts=(*self.attempts[:-1], attempt))

    def unbegun(self) -> Records:
        """Without the last attempt, of which no Job was made: it was no try. Should its Job come late, the next one, of
        the same name, takes it for its own."""
        return replace(self, attempts=self.attempts[:-1])

    @property
    def live(self) -> Attempt | None:
        """The attempt that is reserved or runs."""
        last = self.attempts[-1] if self.attempts else None
        return last if last and last.stage.live else None

    @property
    def reserved(self) -> Iterator[str]:
        """Names of the Jobs that are written down and were not seen."""
        yield from (one.job for one in self.attempts if one.stage is Stage.RESERVED)
        if self.validation and self.validation.kind is Kind.JOB and self.validation.stage is Stage.RESERVED:
            yield self.validation.name

    @property
    def begun(self) -> tuple[Attempt | Validation, ...]:
        """Attempts and check, oldest first."""
        return (*self.attempts, self.validation) if self.validation else self.attempts


def as_json(records: Records) -> dict[str, Any]:
    """For the annotation; empty for no records. The check is in it the last attempt, of remedy "none"."""
    stored: dict[str, Any] = {}
    if records.begun:
        stored["attempts"] = [_stored(one if isinstance(one, Attempt) else _as_attempt(one)) for one in records.begun]
    if records.paused:
        stored["paused"] = True
    if records.drain:
        stored["drain"] = {
            "remedy": records.drain.remedy,
            "at": records.drain.at,
            "returns": dict(records.drain.returns),
            "boot_id": records.drain.boot_id,
            "boot_s": records.drain.boot_s,
        }
        if records.drain.asked:
            stored["drain"]["asked"] = dict(records.drain.asked)
    if records.idle != Idle():
        failed_resets = {key: _stored(one) for key, one in records.idle.failed_resets.items()}
        stored["idle"] = {
            "withdrawn": records.idle.withdrawn,
            "times": list(records.idle.times),
            "tried": failed_resets,
        }
    return stored


def _stored(attempt: Attempt) -> dict[str, Any]:
    return {name: value for name in Attempt.__slots__ if (value := getattr(attempt, name))}


def _as_attempt(check: Validation) -> Attempt:
    outcome = (check.uuids, check.boot_id, check.stage, check.blocked_at, check.ended_at, check.said)
    return Attempt(Remedy.NONE, check.number, check.name, *outcome)


def from_json(data: Mapping[str, Any]) -> Records:
    """KeyError, TypeError, ValueError or AttributeError for what this agent did not write."""
    found = [_attempt(one) for one in data.get("attempts", ())]
    check = _check(found.pop()) if found and found[-1].remedy is Remedy.NONE else None
    begun = _begun(data["drain"]) if "drain" in data else None
    return Records(tuple(found), bool(data.get("paused")), begun, _idle(data.get("idle", {})), check)


def _check(one: Attempt) -> Validation:
    kind = Kind.DIAGNOSIS if one.job.startswith(Kind.DIAGNOSIS) else Kind.JOB
    return Validation(
        kind, one.job, one.uuids, one.boot_id, one.number, one.stage, one.acted_at, one.ended_at, one.said
    )


def _attempt(one: Mapping[str, Any]) -> Attempt:
    return Attempt(
        Remedy(one["remedy"]),
        int(one["number"]),
        str(one["job"]),
        tuple(str(uuid) for uuid in one.get("uuids", ())),
        str(one.get("boot_id", "")),
        Stage(one["stage"]),
        float(one.get("acted_at", 0)),
        int(one.get("ended_at", 0)),
        str(one.get("said", "")),
        bool(one.get("final", False)),
        tuple(str(uuid) for uuid in one.get("along", ())),
    )


def _idle(data: Mapping[str, Any]) -> Idle:
    failed_resets = {str(key): _attempt(one) for key, one in data.get("tried", {}).items()}
    return Idle(bool(data.get("withdrawn")), tuple(int(at) for at in data.get("times", ())), failed_resets)


def _begun(data: Mapping[str, Any]) -> Begun:
    returns = {str(workload): int(times) for workload, times in data.get("returns", {}).items()}
    asked = {str(uid): int(at) for uid, at in data.get("asked", {}).items()}
    boot_id, boot_s = str(data.get("boot_id", "")), float(data.get("boot_s", 0))
    return Begun(Remedy(data["remedy"]), int(data["at"]), returns, boot_id, boot_s, asked)
