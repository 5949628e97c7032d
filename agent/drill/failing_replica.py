"""Exercises: an inference replica dies, or hangs, and the node and the gateway have to notice it themselves."""

from __future__ import annotations

import time

from agent.drill.cluster import MissedError
from agent.drill.kit import Object
from agent.drill.outcome import Part
from agent.drill.scene import Scene, within
from agent.drill.watch import restarts

_HANGS_S = 10.0  # long enough for three readiness probes to fail, too short for the liveness probe to restart it


def killed_replica(scene: Scene, part: Part) -> None:
    scene.kill(_victim(scene), part, returns=True)
    scene.wait("all replicas are ready", scene.replicas_ready)
    part.note("all replicas are ready", time.time())
    ready_s = part.between("killed", "all replicas are ready")
    part.measure("killed → all replicas are ready", ready_s, scene.targets["ready-s"], "s")


def hanging_replica(scene: Scene, part: Part) -> None:
    """Stopped by SIGSTOP: it takes connections and answers nothing. It goes on by itself, whatever becomes of us."""
    victim = _victim(scene)
    uid, node, name = victim["metadata"]["uid"], victim["spec"]["nodeName"], victim["metadata"]["name"]

    def look() -> None:
        if all(pod["metadata"]["uid"] != uid for pod in scene.watched.ready("inference")):
            part.note("it counts as not ready", time.time(), [name])

    done = scene.hand(node, "hang", [f"--hang={uid}", f"--for-s={_HANGS_S:g}"], look)
    if not done["hung"]:
        raise MissedError(f"no process of {name} was found on {node}")
    part.note("hangs", within(part.began, done["at"], time.time()), [name])
    part.note("goes on", within(part.began, done["on_at"], time.time()), [name])
    scene.say(f"{name} on {node} hung for {_HANGS_S:g} s")
    scene.wait("all replicas are ready", scene.replicas_ready)
    part.note("all replicas are ready", time.time())
    part.measure(
        "goes on → all replicas are ready",
        part.between("goes on", "all replicas are ready"),
        scene.targets["ready-s"],
        "s",
    )


def _victim(scene: Scene) -> Object:
    """The one that was restarted least: the kubelet starts one that dies again and again later each time."""
    return min(scene.watched.ready("inference"), key=restarts)
