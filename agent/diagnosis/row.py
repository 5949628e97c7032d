"""One row of a rule's table: a thing that can be wrong, how bad it is, what cures it, and when it ends."""

from __future__ import annotations

from dataclasses import dataclass

from agent.config.limits import Limits
from agent.model.fault import Evidence, Finding, Remedy, Severity
from agent.model.observation import Observation


@dataclass(frozen=True, slots=True)
class Row:
    rule: str
    severity: Severity
    remedy: Remedy
    meaning: str
    confirm: str = ""  # the setting that says for how long it must be seen; at once where there is none
    clear: str = ""  # the setting that says for how long it must be gone; latched where there is none
    signals: tuple[str, ...] = ()  # the readings without which its absence can't be seen

    def found(
        self,
        seen: Observation,
        limits: Limits,
        message: str = "",
        *,
        severity: Severity | None = None,
        remedy: Remedy | None = None,
        pci: str | None = None,
        holds_only: bool = False,
    ) -> Finding:
        """This row's finding on the GPU (or node) of an observation."""
        return Finding(
            rule=self.rule,
            pci=seen.pci if pci is None else pci,
            severity=self.severity if severity is None else severity,
            remedy=remedy or self.remedy,
            message=(message or self.meaning) + (" (a drill)" if seen.drill else ""),
            evidence=Evidence(seen.at, seen.source, seen.raw or message or self.meaning),
            seen=seen.seen,
            witness=seen.source,
            confirm_s=getattr(limits, self.confirm) if self.confirm else 0.0,
            clear_s=getattr(limits, self.clear) if self.clear else None,
            holds_only=holds_only,
            signals=self.signals,
            drill=seen.drill,
        )
