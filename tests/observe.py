"""Short ways to write observations down, for tests."""

from __future__ import annotations

from typing import Any

from agent.config.limits import Limits
from agent.diagnosis.judge import Memory, Orders, judge
from agent.model.fault import Reason, Unseen, Verdict
from agent.model.observation import Observation, Signal, Value

GPU, OTHER = "0000:1b:00.0", "0000:43:00.0"
START = 1_760_000_000.0  # the wall clock at second 0 of a test


def reading(pci: str = GPU, source: str = "nvml", /, **values: Value) -> Observation:
    known: dict[str, Value] = {"uuid": f"GPU-{pci}", "energy_j": 100.0, "recovery_action": 0, "persistence_mode": 1}
    return Observation(0, source, Signal.READING, pci, values={**known, **values})


def xid(code: int, pci: str = GPU, source: str = "nvml", **extra: Any) -> Observation:
    raw = extra.pop("raw", f"NVRM: Xid (PCI:{pci}): {code}")
    return Observation(0, source, Signal.XID, pci, value=code, raw=raw, **extra)


def lost(pci: str = GPU, source: str = "nvml") -> Observation:
    return Observation(0, source, Signal.LOST, pci, raw="GPU is lost")


def alive(source: str = "nvml", boot_id: str = "boot-1", seq: int | None = None, **values: Value) -> Observation:
    return Observation(0, source, Signal.ALIVE, boot_id=boot_id, seq=seq, values=values)


def silent(source: str = "nvml") -> dict[str, Reason]:
    """As a verdict says it of a source."""
    return {source: Reason(Unseen.SILENT, "no poll finished for over 60 s")}


class Judge:
    """Runs the judge along a made-up clock; each ``at`` is one round."""

    def __init__(self, limits: Limits | None = None, expected: tuple[str, ...] = ("nvml",)) -> None:
        self.limits, self.expected, self.memory, self.now = limits or Limits(), expected, Memory(), 1000.0
        self.wall, self.dismissed = START, frozenset[str]()

    def after(self, seconds: float, *seen: Observation) -> Verdict:
        """The verdict ``seconds`` later, with these observations arriving just then."""
        self.now += seconds
        stamped = [Observation(**{**fields(o), "arrived": self.now, "at": self.wall + self.now}) for o in seen]
        return self.hears(*stamped)

    def hears(self, *stamped: Observation) -> Verdict:
        """The verdict now, with what says itself when it was and when it arrived."""
        orders, wall = Orders(dismissed=self.dismissed), self.wall + self.now
        self.memory, verdict = judge(self.memory, stamped, self.now, wall, self.limits, self.expected, orders)
        return verdict

    def each_poll(self, seconds: float, *seen: Observation) -> Verdict:
        """The verdict after ``seconds`` of a poll every 5 s that says the same."""
        verdict = self.after(0, *seen)
        for _ in range(int(seconds // 5)):
            verdict = self.after(5, *seen)
        return verdict


def fields(o: Observation) -> dict[str, Any]:
    return {name: getattr(o, name) for name in Observation.__dataclass_fields__}


def ids(verdict: Verdict) -> list[str]:
    return [fault.finding.id for fault in verdict.faults]
