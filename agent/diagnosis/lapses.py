"""What can't be seen again and again counts as unseen until it was seen for a while: the status must not flap. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf

from agent.config.source_index import GPUS
from agent.diagnosis.rules import silence
from agent.model.fault import Fault, Reason, Unseen
from agent.model.observation import Failure

_RULES = {silence.UNREAD.rule, *(row.rule for row in silence.ROWS)}


Came = tuple[Reason, float]  # why it can't be seen, and since when, monotonic seconds


@dataclass(frozen=True, slots=True)
class Lapse:
    """Something that can't be seen, or couldn't lately."""

    reason: Reason
    over: float | None = None  # since when it is seen, monotonic seconds; None: it isn't
    again: bool = False  # it was over before, and soon came again

    @property
    def counts(self) -> bool:
        return self.again or self.over is None

    @property
    def told(self) -> Reason:
        return replace(self.reason, words=f"{self.reason.words}; this comes and goes") if self.again else self.reason


def lapses(before: Mapping[str, Lapse], unseen: Mapping[str, Came], now: float, settled_s: float) -> dict[str, Lapse]:
    """The lapses after one more round: each is forgotten once it was over for so long.

    What was never seen yet, and what is closed on purpose, lapses only while it is so.
    """
    found: dict[str, Lapse] = {}
    for name in {**before, **unseen}:
        old, (reason, came) = before.get(name), unseen.get(name, (None, now))
        if old and old.over is not None and came - old.over >= settled_s:
            old = None
        if reason:
            found[name] = Lapse(reason, again=old is not None and (old.again or old.over is not None))
        elif old and old.reason.pci and GPUS in unseen:
            found[name] = old  # whether that GPU is read now, nobody can say
        elif old and not _expected(old.reason):
            found[name] = replace(old, over=now if old.over is None else old.over)
    return found


def holds(found: Mapping[str, Lapse], fault: Fault) -> bool:
    """Whether a fault says that something can't be seen which comes and goes: then it stays as it is."""
    return held_until(found, fault, inf) > 0.0


def held_until(before: Mapping[str, Lapse], fault: Fault, settled_s: float) -> float:
    """Until when (monotonic seconds) it stays so as far as these lapses tell, however often anybody asks meanwhile."""
    finding = fault.finding
    lapse = before.get(f"GPU {finding.pci}" if finding.pci else finding.evidence.source)
    if lapse is None or not (lapse.again and fault.confirmed and finding.rule in _RULES):
        return 0.0
    return inf if lapse.over is None else lapse.over + settled_s


def _expected(reason: Reason) -> bool:
    return reason.kind is Unseen.UNHEARD or reason.failure is Failure.KEEP_OFF
