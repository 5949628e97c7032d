"""What must hold, whatever comes: each promise by its name, with how often it was checked."""

from __future__ import annotations

from collections import Counter

PROMISES = {
    "budget": "no taint of ours comes to a node beyond the most generous limit in force",
    "hourly": "no more nodes are withdrawn within an hour than the most generous limit in force allows",
    "permit": "no node bears a withdrawing taint of ours without a permit",
    "evict": "no pod is asked to leave a node without a fatal fault, our taint and both permits",
    "drains": "no more nodes have pods leaving at once than the most generous limit in force allows",
    "others": "nothing of others is changed, and no permit is taken from a node that bears our taint",
    "once": "one incident is repaired once: no Job before it is reserved, under a pod, or for a GPU that is well",
    "voice": "an agent with a fatal fault acts or says what it waits for, and comes to rest within its round",
    "named": "whoever is waited for by name is there, or was a while ago",
    "free": "nobody waits for long for a permit that is free",
    "draining": "nobody waits for a draining permit that one node holds for longer than a drain may take",
    "rest": "once all trouble has ended the whole fleet comes to rest: healthy, no taint, no permit held",
}


class BrokenError(AssertionError):
    """A promise was not kept."""


class Promises:
    """How often each was kept; the first that is not ends the schedule."""

    def __init__(self) -> None:
        self.kept: Counter[str] = Counter()

    def keep(self, name: str, so: object, said: str) -> None:
        if not so:
            raise BrokenError(f"{name}: {said} ({PROMISES[name]})")
        self.kept[name] += 1
