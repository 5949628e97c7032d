"""A year of nodes through the one cycle and the cluster in memory: what was so, and what ledgers and metrics say of it.

``python -m tests.score.year``: 400 nodes; it prints all three, and fails if one is off by more than one in a hundred.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

from agent.config.settings import Budget, Recurrence
from agent.model.names import HISTORY_ANNOTATION, OUT_LABEL
from agent.remediation.ledger import End, Ledger, Moment, Sums
from agent.remediation.ledger_json import load
from agent.status.metrics import registry
from agent.status.snapshot import Snapshot
from tests.life import CONFIG, UUID, Life
from tests.observe import GPU, OTHER
from tests.remediation.test_repair import REBOOT, RESET
from tests.remediation.test_validation import dismiss

DAY_S = 86_400
_GPUS = 2
_FAULTS = (RESET, RESET, RESET, REBOOT)
_CONFIG = CONFIG.model_copy(
    update={
        "policy": CONFIG.policy.model_copy(update={"relapses": 1000}),
        "recurrence": Recurrence(first_hold_s=50, hold_s=100, most_hold_s=200, watch_s=100, replace_after=0),
        "budget": Budget(max_withdrawn=2),
    }
)
# Each phase, as the machine, its pods and its taint show it.
_PHASES: Mapping[str, tuple[Moment, Moment]] = {
    "detect": (Moment.ONSET, Moment.VERDICT),
    "wait": (Moment.VERDICT, Moment.TAINT),
    "drain": (Moment.TAINT, Moment.DRAINED),
    "repair": (Moment.DRAINED, Moment.PROVED),
    "prove": (Moment.PROVED, Moment.ENDED),
    "out": (Moment.TAINT, Moment.ENDED),
}
# A metric, and which figure it is; the names in braces are its labels.
_FIGURES = {
    "gpu_health_rule_incidents_total": "incidents of {rule}",
    "gpu_health_incidents_total": "ended by {by}",
    "gpu_health_card_incidents_total": "incidents of card {uuid}",
    "gpu_health_lost_gpu_seconds_total": "lost GPU-seconds by {rule}",
    "gpu_health_incident_phase_seconds_sum": "{phase}: seconds",
    "gpu_health_incident_phase_seconds_count": "{phase}: times",
}
Found = Counter[str]  # by what it is of, as ``incidents of xid-95``; seconds and numbers


@dataclass
class Year:
    """What was so, and what two tellers say of it."""

    truth: Found = field(default_factory=Counter)
    ledgers: Found = field(default_factory=Counter)
    metrics: Found = field(default_factory=Counter)
    node_days: int = 0

    @property
    def apart(self) -> float:
        """The most that a figure of either is off, as a share of the truth."""
        return max(apart(self.truth, told) for told in (self.ledgers, self.metrics))

    def rows(self) -> Iterator[tuple[str, float, float, float]]:
        """Each figure: what was so, by the ledgers, by the metrics."""
        figures: dict[str, Callable[[Found], float]] = {name: itemgetter(name) for name in sorted(self.truth)}
        figures |= {
            "days between two incidents of a node": lambda one: self.node_days / _incidents(one),
            "days between two incidents of a card": lambda one: self.node_days * _GPUS / _cards(one),
            "GPU-hours in service of 100 possible": lambda one: 100 - 100 * _lost(one) / self._possible_s,
            "dismissed verdicts in 1000 node-days": lambda one: 1000 * one["ended by person"] / self.node_days,
        }
        for name, figure in figures.items():
            yield name, figure(self.truth), figure(self.ledgers), figure(self.metrics)

    @property
    def _possible_s(self) -> int:
        return self.node_days * DAY_S * _GPUS


def _incidents(found: Found) -> int:
    return sum(count for name, count in found.items() if name.startswith("ended by "))


def _cards(found: Found) -> int:
    return sum(count for name, count in found.items() if name.startswith("incidents of card "))


def _lost(found: Found) -> int:
    return sum(count for name, count in found.items() if name.startswith("lost GPU-seconds "))


def of_ledger(sums: Sums) -> Found:
    """What a ledger says."""
    found: Found = Counter()
    for (rule, by), count in sums.ends.items():
        found.update({f"incidents of {rule}": count, f"ended by {by}": count})
    found.update({f"incidents of card {uuid}": count for uuid, count in sums.cards.items()})
    found.update({f"lost GPU-seconds by {rule}": seconds for rule, seconds in sums.lost_gpu_s.items()})
    for phase, lasted in sums.lasted.items():
        found.update({f"{phase}: seconds": lasted.seconds, f"{phase}: times": lasted.count})
    return found


def of_metrics(shot: Snapshot) -> Found:
    """What Prometheus reads of a node."""
    found: Found = Counter()
    for family in registry(lambda: shot).collect():
        for sample in family.samples:
            if figure := _FIGURES.get(sample.name):
                found[figure.format(**sample.labels)] += round(sample.value)
    return found


def lived(seed: int, mean_days: float, days: int, truth: Found) -> tuple[Life, Ledger]:
    """One node's year. Its ledger in the end; ``truth`` is what the machine, its pods and its taint were."""
    chance = random.Random(seed)
    life = Life(0, config=_CONFIG)
    life.cluster.add_node("n3")
    at = began = life.now
    while (at := max(at + chance.expovariate(1 / mean_days) * DAY_S, life.now)) < began + days * DAY_S:
        life.now = at - at % 10
        life.tick()
        life.tick()
        _incident(life, chance, truth)
    return life, load((life.node()["metadata"].get("annotations") or {}).get(HISTORY_ANNOTATION))


def _incident(life: Life, chance: random.Random, truth: Found) -> None:
    pci, code, dismissed = chance.choice((GPU, OTHER)), chance.choice(_FAULTS), chance.random() < 0.1
    free_at, lets_go_at = (life.now + chance.choice((0, 0, 0, 60, 120)) for _ in range(2))
    life.cluster.add_pod("research", "train", "n1", owner="Job")  # its work came back with the node
    life.breaks(pci, code)
    boot, number, now, *_ = life.log[-1]
    life.log[-1] = boot, number, now - chance.randrange(10), pci, code  # it took until now to be read
    at = {Moment.ONSET: int(life.log[-1][2])}
    life.api = slow = _Slow(life, lets_go_at)
    _takes_all(life, free_at > life.now)
    while Moment.DRAINED not in at:  # a person's word comes then
        if life.now >= free_at:
            _takes_all(life, False)
        slow.polls()
        _seen(life, at)
    word = f"xid-{code}@{pci}" if dismissed else ""
    if word:
        dismiss(life, word)
    while life.tainted():
        slow.polls()
        _seen(life, at)
    at[Moment.ENDED] = int(life.now)
    if word:
        at.pop(Moment.PROVED, None)
        dismiss(life, "")
    while any(life.holders()) or life.waits:
        slow.polls()
    truth.update(
        {
            f"incidents of xid-{code}": 1,
            f"ended by {End.PERSON if dismissed else End.PROOF}": 1,
            f"incidents of card {UUID if pci == GPU else f'GPU-{OTHER}'}": 1,
            f"lost GPU-seconds by xid-{code}": _GPUS * (at[Moment.ENDED] - at[Moment.TAINT]),
        }
    )
    for phase, (first, last) in _PHASES.items():
        if first in at and last in at:
            truth.update({f"{phase}: seconds": at[last] - at[first], f"{phase}: times": 1})


@dataclass
class _Slow:
    """The cluster, where a pod that may be evicted is gone a poll later, and may not be for a while."""

    life: Life
    lets_go_at: float
    leaving: str = ""  # the path of a pod

    def __call__(self, method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        if not path.endswith("/eviction"):
            return self.life.cluster(method, path, *rest, **more)
        if self.life.now < self.lets_go_at:
            return 429, {"message": "a budget protects it"}
        self.leaving = path.removesuffix("/eviction")
        return 201, {}

    def polls(self) -> None:
        """One poll goes by."""
        if self.leaving:
            self.life.cluster("DELETE", self.leaving, None)
            self.leaving = ""
        self.life.tick()


def _takes_all(life: Life, taken: bool) -> None:
    """The pool's two other nodes are out of service, or not, and its two permits with them."""
    for node in ("n2", "n3"):
        labels = {"metadata": {"labels": {OUT_LABEL: "true" if taken else None}}}
        life.cluster("PATCH", f"/api/v1/nodes/{node}", labels, "application/merge-patch+json")


def _seen(life: Life, at: dict[Moment, int]) -> None:
    """What is so for the first time after a poll."""
    withdraws = life.verdict.withdraw
    so = {
        Moment.VERDICT: withdraws,
        Moment.TAINT: life.tainted(),
        Moment.DRAINED: life.tainted() and withdraws and "train" not in life.cluster.pods_on("n1"),
        Moment.PROVED: Moment.VERDICT in at and all(fault.proved for fault in life.verdict.fatal),
    }
    at.update({moment: int(life.now) for moment, is_so in so.items() if is_so and moment not in at})


def year(seeds: Iterable[int], mean_days: float, days: int = 365) -> Year:
    """Of the nodes of these seeds."""
    found = Year()
    for seed in seeds:
        life, ledger = lived(seed, mean_days, days, found.truth)
        found.node_days += days
        found.ledgers.update(of_ledger(ledger.sums(life._wall())))
        found.metrics.update(of_metrics(Snapshot("n1", "evict", life.verdict, ledger=ledger, ledger_at=life._wall())))
    return found


def apart(truth: Mapping[str, int], told: Mapping[str, int]) -> float:
    """By how much of the truth any figure is off."""
    names = {name for one in (truth, told) for name, value in one.items() if value}
    return max(abs(told.get(name, 0) - truth.get(name, 0)) / max(1, truth.get(name, 0)) for name in names)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.score.year")
    parser.add_argument("--nodes", type=int, default=400)
    parser.add_argument("--mean-days", type=float, default=240, help="between two incidents of a node")
    arguments = parser.parse_args()
    found = year(range(arguments.nodes), arguments.mean_days)
    print(f"{'':<40}{'so it was':>14}{'the ledgers':>14}{'the metrics':>14}")
    for name, *three in found.rows():
        print(f"{name:<40}{''.join(f'{one:>14.6g}' for one in three)}")
    print(f"\nfarthest apart: {found.apart:.2%}")
    return int(found.apart > 0.01)


if __name__ == "__main__":
    raise SystemExit(main())
