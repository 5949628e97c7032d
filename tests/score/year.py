"""A year of nodes through the one cycle and the cluster in memory: what their ledgers say beside what was so.

``python -m tests.score.year``: 400 nodes; it prints both, and fails where they differ by more than one in a hundred.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from agent.config.settings import Recurrence
from agent.model.names import HISTORY_ANNOTATION
from agent.remediation.ledger import End, Ledger
from agent.remediation.ledger_json import load
from tests.life import CONFIG, UUID, Life
from tests.observe import GPU, OTHER
from tests.remediation.test_repair import REBOOT, RESET
from tests.remediation.test_validation import dismiss

DAY_S = 86_400
_FAULTS = (RESET, RESET, RESET, REBOOT)
_CONFIG = CONFIG.model_copy(
    update={
        "policy": CONFIG.policy.model_copy(update={"relapses": 1000}),
        "recurrence": Recurrence(first_hold_s=50, hold_s=100, most_hold_s=200, watch_s=100, replace_after=0),
    }
)


@dataclass
class Figures:
    """By what they are of, as ``rule xid-95``; seconds and numbers."""

    found: Counter[str] = field(default_factory=Counter)

    def told(self, ledger: Ledger, now: float) -> None:
        """What a ledger says."""
        sums = ledger.sums(now)
        for (rule, by), count in sums.ends.items():
            self.found.update({f"incidents of {rule}": count, f"ended by {by}": count})
        self.found.update({f"incidents of card {uuid}": count for uuid, count in sums.cards.items()})
        self.found["lost GPU-seconds"] += sum(sums.lost_gpu_s.values())
        self.found["seconds withdrawn"] += sums.lasted["out"].seconds if "out" in sums.lasted else 0


def lived(seed: int, mean_days: float, days: int, truth: Figures) -> tuple[Ledger, float]:
    """One node's year. Its ledger in the end, and the time then; ``truth`` is what the machine and its taint were."""
    chance = random.Random(seed)
    life, began = Life(0, config=_CONFIG), 0.0
    began = life.now
    at = began
    while (at := max(at + chance.expovariate(1 / mean_days) * DAY_S, life.now)) < began + days * DAY_S:
        life.now = at - at % 10
        life.tick()
        life.tick()
        _incident(life, chance, truth)
    return load((life.node()["metadata"].get("annotations") or {}).get(HISTORY_ANNOTATION)), life._wall()


def _incident(life: Life, chance: random.Random, truth: Figures) -> None:
    pci, code, dismissed = chance.choice((GPU, OTHER)), chance.choice(_FAULTS), chance.random() < 0.1
    life.breaks(pci, code)
    while not life.tainted():
        life.tick()
    taken = life.now
    if dismissed:
        dismiss(life, f"xid-{code}@{pci}")
    while life.tainted():
        life.tick()
    out_s = int(life.now - taken)
    if dismissed:
        dismiss(life, "")
    while any(life.holders()):
        life.tick()
    truth.found.update(
        {
            f"incidents of xid-{code}": 1,
            f"ended by {End.PERSON if dismissed else End.PROOF}": 1,
            f"incidents of card {UUID if pci == GPU else f'GPU-{OTHER}'}": 1,
            "lost GPU-seconds": 2 * out_s,
            "seconds withdrawn": out_s,
        }
    )


def year(seeds: Iterable[int], mean_days: float, days: int = 365) -> tuple[Figures, Figures]:
    """What was so, and what the ledgers say."""
    truth, told = Figures(), Figures()
    for seed in seeds:
        told.told(*lived(seed, mean_days, days, truth))
    return truth, told


def apart(truth: Mapping[str, int], told: Mapping[str, int]) -> dict[str, float]:
    """By how much of the truth each figure is off."""
    return {name: abs(told.get(name, 0) - truth.get(name, 0)) / max(1, truth.get(name, 0)) for name in {*truth, *told}}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.score.year")
    parser.add_argument("--nodes", type=int, default=400)
    parser.add_argument("--mean-days", type=float, default=240, help="between two incidents of a node")
    arguments = parser.parse_args()
    truth, told = year(range(arguments.nodes), arguments.mean_days)
    for name in sorted(truth.found):
        print(f"{name:<36}{truth.found[name]:>12}{told.found[name]:>12}")
    return int(max(apart(truth.found, told.found).values()) > 0.01)


if __name__ == "__main__":
    raise SystemExit(main())
