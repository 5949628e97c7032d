"""``python -m tests.exploration``: one schedule after the other, as many as asked for or for as long."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from tests.exploration.fleet import Fleet
from tests.exploration.promises import PROMISES
from tests.exploration.trouble import TROUBLES


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.exploration", description=__doc__)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="the first schedule's; the next is one more")
    parser.add_argument("--count", type=int, default=0, help="how many schedules")
    parser.add_argument("--minutes", type=float, default=0.0, help="or for how long")
    parser.add_argument("--kinds", default=",".join(TROUBLES), help=f"of trouble: {', '.join(TROUBLES)}")
    parser.add_argument("--tell", action="store_true", help="what came in each schedule")
    asked = parser.parse_args()
    until = time.monotonic() + asked.minutes * 60
    count = asked.count or (0 if asked.minutes else 1)
    kept, rounds, writes, broken, seed = Counter[str](), 0, 0, list[int](), asked.seed
    while seed - asked.seed < count or time.monotonic() < until:
        fleet = Fleet(seed, tuple(asked.kinds.split(",")))
        try:
            fleet.explore()
        except Exception as error:
            broken.append(seed)
            again = f"python -m tests.exploration --seed {seed} --count 1 --tell"
            again += f" --kinds {asked.kinds}" if asked.kinds != parser.get_default("kinds") else ""
            print(f"seed {seed}: {type(error).__name__}: {error}\n  again: {again}", flush=True)
        if asked.tell:
            print("\n".join(fleet.told))
        kept, rounds, writes, seed = kept + fleet.promises.kept, rounds + fleet.rounds, writes + fleet.writes, seed + 1
    print(f"seeds {asked.seed} to {seed - 1}: {len(broken)} schedules broken{f' {broken}' if broken else ''}")
    print(f"{seed - asked.seed:,} schedules, {rounds:,} rounds, {writes:,} writes; promises held:")
    for name, promise in PROMISES.items():
        print(f"  {name:9} {kept[name]:9,} times: {promise}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
