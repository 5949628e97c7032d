"""Exercise: an inference pod is deleted, as a roll-out or a person does it."""

from __future__ import annotations

import time

from agent.drill.outcome import Part
from agent.drill.scene import Scene
from agent.drill.watch import REPLICAS


def deleted_pod(scene: Scene, part: Part) -> None:
    watched = scene.watched
    # Not the one beside the training: that leaves with its node.
    kept = {pod["spec"].get("nodeName") for pod in watched.live("training")}
    victim = min(watched.ready("inference"), key=lambda pod: pod["spec"]["nodeName"] in kept)
    known = watched.uids()
    scene.cluster.delete_pod(victim)
    uid, name = victim["metadata"]["uid"], victim["metadata"]["name"]
    part.note("deleted", time.time(), [name])
    scene.say(f"pod {name} deleted")
    scene.wait("another pod has a node", lambda: watched.placed("inference") >= REPLICAS)
    part.note("another pod has a node", time.time(), watched.new("inference", known))
    scene.wait("all replicas are ready", scene.replicas_ready)
    part.note("all replicas are ready", time.time())
    scene.wait("the deleted pod has ended", lambda: uid not in watched.uids())
    part.note("the deleted pod has ended", time.time(), [name])
    ready_s = part.between("deleted", "all replicas are ready")
    part.measure("deleted → all replicas are ready", ready_s, scene.targets["ready-s"], "s")
