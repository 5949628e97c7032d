"""What a repair leaves written on the Node: its attempts, the check after them, the labels changed for their time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from agent.model.remedy import LADDER, Remedy
from agent.model.text import printable
from agent.remediation import strict

_MOST_RETURNED, _FEW_RETURNED = 32, 4  # workloads that came back: those that did most often


class Kind(StrEnum):
    """Who makes the check, and before what: with what its name begins."""

    JOB = "gpu-health-check-"
    DIAGNOSIS = "gpu-health-diagnosis-"  # DCGM's, run by the agent itself
    GATE = "gpu-health-diagnosis-gate-"  # the same, of a new node

    @property
    def before(self) -> str:
        """What waits for it."""
        return "the startup taint's removal" if self is Kind.GATE else "the return"


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
    """One remedy, carried out once."""

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
    unbegun: bool = False  # it failed since its Job's pod never began

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
    """The check that a cured node must pass before it returns, or a new one before it takes pods."""

    kind: Kind
    name: str
    uuids: tuple[str, ...] = ()  # of the GPUs that it is of; empty: all
    boot_id: str = ""  # when it was reserved
    number: int = 1  # of the run: the agent's end cut a diagnosis off, or a Job never began
    stage: Stage = Stage.RESERVED
    # Unix seconds since when a diagnosis can't be run, or when the last Job was given up that never began; 0: neither.
    blocked_at: float = 0.0
    ended_at: int = 0
    said: str = ""  # how it failed

    @property
    def run(self) -> str:
        """The name of this run of the diagnosis: what an earlier one found proves nothing for a later."""
        return f"{self.name}-{self.number}"

    @property
    def job(self) -> str:
        """The name of this run's Job, where the check is one."""
        return self.name if self.number == 1 else self.run

    @property
    def what(self) -> str:
        """For people."""
        return f"check, attempt {self.number} ({f'Job {self.job}' if self.kind is Kind.JOB else 'DCGM'})"


@dataclass(frozen=True, slots=True)
class Begun:
    """A drain: for which remedy, and since when pods are asked to leave for it."""

    remedy: Remedy
    at: int  # Unix seconds, for people
    returns: Mapping[str, int] = field(default_factory=dict)  # workload → how often it came back
    boot_id: str = ""  # the boot then; empty of a node that tells of none
    boot_s: float = 0.0  # monotonic seconds in that boot; 0: its deadline begins anew once pods may be asked
    asked: Mapping[str, int] = field(default_factory=dict)  # pod UID → when it was asked to save, monotonic seconds
    permit: int | None = None  # the number of the draining permit; None: an older agent's word
    quiet_from: int = 0  # since when nobody is asked to leave under it, monotonic seconds; 0: somebody may be


COLLECTS = "gpu-health-collect-"  # with what the name of its Job begins


@dataclass(frozen=True, slots=True)
class Collected:
    """The evidence of the incident: by which Job, and since when that is waited for."""

    job: str
    boot_id: str
    boot_s: int  # monotonic seconds in that boot
    over: bool = False  # it ended somehow, or lasted for too long


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
    labelled: bool | None = None  # whether the label gpu-error is ours; None: it is not there, or nobody wrote it down
    asked: Mapping[str, str] = field(default_factory=dict)  # preset → the incident for which its label asks
    collected: Collected | None = None  # None: nothing was, so far
    cordoned: bool = False  # our cordon was seen in this withdrawal

    def latest(self, attempt: Attempt) -> Records:
        """With the last attempt as it is now."""
        return replace(self, attempts=(*self.attempts[:-1], attempt))

    @property
    def stopped(self) -> Records:
        """While nobody may be asked to leave: no deadline runs."""
        return replace(self, drain=replace(self.drain, boot_s=0.0)) if self.drain else self

    def unbegun(self) -> Records:
        """Without the last attempt, of which no Job was made: it was none. Should its Job come after all, the next one,
        of the same name, takes it for its own."""
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
            yield self.validation.job

    @property
    def begun(self) -> tuple[Attempt | Validation, ...]:
        """Attempts and check, oldest first."""
        return (*self.attempts, self.validation) if self.validation else self.attempts


def as_json(records: Records, words: int) -> dict[str, Any]:
    """For the annotation; empty for no records. The check is in it the last attempt, of remedy "none".

    ``words``: how many characters of a text fit, 0 where room is so short that only a few workloads are named.
    """
    stored: dict[str, Any] = {}
    if records.begun:
        begun = (one if isinstance(one, Attempt) else _as_attempt(one) for one in records.begun)
        stored["attempts"] = [_stored(one, words) for one in begun]
    stored |= {flag: True for flag in ("paused", "cordoned") if getattr(records, flag)}
    if records.labelled is not None:
        stored["labelled"] = records.labelled
    if made := records.collected:
        stored["collected"] = [made.job, made.boot_id, made.boot_s, made.over]
    if records.asked:
        stored["asked"] = dict(records.asked)
    if records.drain:
        often = sorted(records.drain.returns.items(), key=lambda one: (-one[1], one[0]))
        stored["drain"] = {
            "remedy": records.drain.remedy,
            "at": records.drain.at,
            "returns": dict(often[: _MOST_RETURNED if words else _FEW_RETURNED]),
            "boot_id": records.drain.boot_id,
            "boot_s": records.drain.boot_s,
        }
        if records.drain.permit is not None:
            stored["drain"]["permit"] = records.drain.permit
        if records.drain.asked:
            stored["drain"]["asked"] = dict(records.drain.asked)
        if records.drain.quiet_from:
            stored["drain"]["quiet_from"] = records.drain.quiet_from
    if records.idle != Idle():
        failed_resets = {key: _stored(one, words) for key, one in records.idle.failed_resets.items()}
        stored["idle"] = {
            "withdrawn": records.idle.withdrawn,
            "times": list(records.idle.times),
            "tried": failed_resets,
        }
    return stored


def _stored(attempt: Attempt, words: int) -> dict[str, Any]:
    short = replace(attempt, said=cut(attempt.said, words))
    return {name: value for name in Attempt.__slots__ if (value := getattr(short, name))}


def cut(text: str, most: int) -> str:
    """So many characters of it at most, and not much more room than that: others wrote it."""
    shown = printable(text)[:most]
    return shown if len(json.dumps(shown)) <= 2 * most + 2 else shown.encode("ascii", "replace").decode()


def _as_attempt(check: Validation) -> Attempt:
    outcome = (check.uuids, check.boot_id, check.stage, check.blocked_at, check.ended_at, check.said)
    return Attempt(Remedy.NONE, check.number, check.name, *outcome)


def from_json(data: Mapping[str, object]) -> Records:
    """KeyError or ValueError for what this agent did not write."""
    found = [_attempt(one) for one in strict.each(data.get("attempts", []))]
    check = _check(found.pop()) if found and found[-1].remedy is Remedy.NONE else None
    if any(one.remedy not in LADDER for one in found):
        raise ValueError("an attempt at what is no repair")
    begun = _begun(strict.table(data["drain"])) if "drain" in data else None
    paused, labelled = strict.flag(data.get("paused", False)), data.get("labelled")
    noted = None if labelled is None else strict.flag(labelled)
    asked = {preset: strict.text(incident) for preset, incident in strict.table(data.get("asked", {})).items()}
    evidence = _collected(data["collected"]) if "collected" in data else None
    ours = strict.flag(data.get("cordoned", False))
    return Records(tuple(found), paused, begun, _idle(data.get("idle", {})), check, noted, asked, evidence, ours)


def _collected(value: object) -> Collected:
    job, boot_id, boot_s, over = strict.each(value)
    return Collected(strict.text(job), strict.text(boot_id), strict.whole(boot_s), strict.flag(over))


def _check(one: Attempt) -> Validation:
    kind = next((kind for kind in (Kind.GATE, Kind.DIAGNOSIS) if one.job.startswith(kind)), Kind.JOB)
    return Validation(
        kind, one.job, one.uuids, one.boot_id, one.number, one.stage, one.acted_at, one.ended_at, one.said
    )


def _attempt(value: object) -> Attempt:
    one = strict.table(value)
    return Attempt(
        Remedy(strict.text(one["remedy"])),
        strict.whole(one["number"], 1),
        strict.text(one["job"]),
        strict.texts(one.get("uuids", [])),
        strict.text(one.get("boot_id", "")),
        Stage(strict.text(one["stage"])),
        strict.at(one.get("acted_at", 0)),
        strict.second(one.get("ended_at", 0)),
        strict.text(one.get("said", "")),
        strict.flag(one.get("final", False)),
        strict.texts(one.get("along", [])),
        strict.flag(one.get("unbegun", False)),
    )


def _idle(value: object) -> Idle:
    data = strict.table(value)
    failed_resets = {key: _attempt(one) for key, one in strict.table(data.get("tried", {})).items()}
    times = tuple(map(strict.second, strict.each(data.get("times", []))))
    return Idle(strict.flag(data.get("withdrawn", False)), times, failed_resets)


def _begun(data: Mapping[str, object]) -> Begun:
    returns = {workload: strict.whole(times) for workload, times in strict.table(data.get("returns", {})).items()}
    boot = strict.text(data.get("boot_id", "")), strict.number(data.get("boot_s", 0.0), 0.0)
    asked = {uid: strict.whole(at) for uid, at in strict.table(data.get("asked", {})).items()}
    permit = strict.whole(data["permit"]) if "permit" in data else None
    quiet = strict.whole(data.get("quiet_from", 0))
    return Begun(Remedy(strict.text(data["remedy"])), strict.second(data["at"]), returns, *boot, asked, permit, quiet)
