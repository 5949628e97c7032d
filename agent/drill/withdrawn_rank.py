"""Exercise: the node of one rank turns bad. All ranks save at one step, and start anew once, with its replacement."""

from __future__ import annotations

import time

from agent.drill.choice import choose_rank
from agent.drill.kit import RANKS, Object
from agent.drill.outcome import Part
from agent.drill.scene import Scene
from agent.drill.withdrawn_node import withdraw


def withdrawn_rank(scene: Scene, part: Part) -> None:
    """The agent asks the one rank that is on its node; that the others save too is the ranks' own doing."""
    cluster, watched = scene.cluster, scene.watched
    for one in scene.ranks:
        cluster.apply(one)
    job = scene.ranks[-1]
    count = job["spec"]["completions"]

    def said() -> dict[str, Object]:
        """What each rank says of itself, by the UID of its pod."""
        told = {pod["metadata"]["uid"]: watched.hear(pod) for pod in watched.live(RANKS)}
        return {uid: one for uid, one in told.items() if one}

    before = scene.wait(f"{count} ranks train", lambda: len(said()) == count and said())
    part.note("all ranks train", time.time(), (pod["metadata"]["name"] for pod in watched.live(RANKS)))
    scene.say(f"{count} ranks train")

    def again() -> bool:
        """Whether each rank has gone on from a checkpoint since."""
        told = said()
        fresh = (uid not in before or one["restored_step"] > before[uid]["restored_step"] for uid, one in told.items())
        return len(told) == count and all(fresh)

    withdraw(scene, part, choose_rank, lambda: watched.whole() and again(), RANKS)
    after, most = said(), scene.targets
    stayed = before.keys() & after.keys()
    restarts = max((after[uid]["restarts"] - before[uid]["restarts"] for uid in stayed), default=None)
    steps = {one["restored_step"] for one in after.values()}
    part.measure("restarts of the ranks that stayed", restarts, most["restarts"], "")
    apart = max(steps) - min(steps) if len(after) == count else None
    part.measure("steps between the ranks when they went on", apart, most["steps-apart"], "")
    part.notes.append(f"{len(stayed)} of {count} ranks kept their pods")
    cluster.end(job)
