"""One row of a rule's table: a thing that can be wrong, how bad it is, what cures it, and when it ends."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.resources import files

from agent.config.limits import Limits
from agent.model.fault import Evidence, Finding, Severity
from agent.model.observation import Observation
from agent.model.remedy import LADDER, Remedy

AT_ONCE = "at_once"


@dataclass(frozen=True, slots=True)
class Row:
    rule: str
    severity: Severity
    remedy: Remedy
    meaning: str
    confirm: str = ""  # the setting that says for how long it must be seen; at once where there is none
    clear: str = ""  # the setting that says for how long it must be gone, or AT_ONCE; latched where there is none
    signals: tuple[str, ...] = ()  # the readings without which its absence can't be seen
    limits: tuple[str, ...] = ()  # the other settings that it goes by
    witnesses: tuple[str, ...] = ()  # the sources that may tell it
    scope: tuple[str, ...] = ("gpu",)  # whether it is a GPU's, the node's, or either

    def found(
        self,
        observation: Observation,
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
            pci=observation.pci if pci is None else pci,
            severity=self.severity if severity is None else severity,
            remedy=remedy or self.remedy,
            message=(message or self.meaning) + (" (a drill)" if observation.drill else ""),
            evidence=Evidence(observation.at, observation.source, observation.raw or message or self.meaning),
            arrived=observation.arrived,
            witness=observation.source,
            confirm_s=self.confirm_s(limits),
            clear_s=self.clear_s(limits),
            holds_only=holds_only,
            signals=self.signals,
            drill=observation.drill,
        )

    @property
    def settings(self) -> tuple[str, ...]:
        """All that it goes by."""
        return tuple(name for name in (self.confirm, self.clear, *self.limits) if name not in ("", AT_ONCE))

    def confirm_s(self, limits: Limits) -> float:
        return float(getattr(limits, self.confirm)) if self.confirm else 0.0

    def clear_s(self, limits: Limits) -> float | None:
        if self.clear == AT_ONCE:
            return 0.0
        return float(getattr(limits, self.clear)) if self.clear else None

    def said(self, severity: Severity, remedy: Remedy, meaning: str) -> Row:
        """This row of an error code, as its line says it."""
        return replace(self, severity=severity, remedy=remedy, meaning=meaning, clear=code_clear(severity, remedy))


def code_clear(severity: Severity, remedy: Remedy) -> str:
    """The setting that says for how long an Xid must not have come again; latched where a remedy must end it."""
    if severity is Severity.FATAL or (severity is Severity.DEGRADED and remedy in LADDER):
        return ""
    return "degraded_xid_clear_s" if severity is Severity.DEGRADED else "notice_clear_s"


def _table() -> Mapping[str, Row]:
    """``rows.csv``: every rule that is no error code of NVIDIA's."""
    text = files("agent.diagnosis").joinpath("rows.csv").read_text(encoding="utf-8")
    return {
        row["rule"]: Row(
            row["rule"],
            Severity[row["severity"].upper()],
            Remedy(row["remedy"]),
            row["meaning"],
            row["confirm"],
            row["clear"],
            *(tuple(row[column].split()) for column in ("signals", "limits", "witnesses", "scope")),
        )
        for row in csv.DictReader(text.splitlines())
    }


TABLE = _table()
