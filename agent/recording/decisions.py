"""A verdict and the steps planned for it as one line of JSON, whenever something changed."""

from __future__ import annotations

import json
from collections.abc import Iterable

from agent.model.describe import describe
from agent.model.fault import Verdict
from agent.model.steps import Step, Wait
from agent.model.text import rfc3339


class Decisions:
    """The same line from the live agent and from a replay, byte for byte."""

    def __init__(self) -> None:
        self._verdict = self._steps = ""

    def changed(self, verdict: Verdict) -> bool:
        """Whether the verdict differs from the last."""
        decided, before = json.dumps(_verdict(verdict)), self._verdict
        self._verdict = decided
        return decided != before

    def judged(self, verdict: Verdict) -> str | None:
        """The line of a verdict that differs from the last."""
        return in_json(verdict, ()) if self.changed(verdict) else None

    def planned(self, verdict: Verdict, steps: Iterable[Step]) -> str | None:
        """The line of a plan that does something else than the last plan for this verdict."""
        words = tuple(describe(step) for step in steps if not isinstance(step, Wait))
        decided = json.dumps([_verdict(verdict), words])
        if not words or decided == self._steps:
            return None
        self._steps = decided
        return in_json(verdict, words)


def _verdict(verdict: Verdict) -> dict[str, object]:
    return {
        "status": verdict.status,
        "remedy": verdict.remedy,
        "withdraw": verdict.withdraw,
        "faults": [
            {
                "id": fault.finding.id,
                "pci": fault.finding.pci,
                "severity": fault.finding.severity.name.lower(),
                "remedy": fault.finding.remedy,
                "message": fault.finding.message,
            }
            for fault in verdict.faults
        ],
    }


def in_json(verdict: Verdict, steps: Iterable[str]) -> str:
    """One decision as replay prints it."""
    return json.dumps({"at": rfc3339(verdict.at), **_verdict(verdict), "steps": list(steps)})
