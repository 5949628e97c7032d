"""Exercise: the training dies without warning. What is lost is at most an interval between two checkpoints."""

from __future__ import annotations

import time
from math import ceil

from agent.drill.outcome import Part
from agent.drill.scene import Scene


def killed_training(scene: Scene, part: Part) -> None:
    watched = scene.watched
    (training,) = watched.live("training")
    uid = training["metadata"]["uid"]

    def unsaved() -> bool:
        said = watched.hear(training)
        return said.get("step", 0) - said.get("saved_step", 0) >= 2

    scene.wait("the training has work that is not saved", unsaved)
    watched.follow(training)
    scene.kill(training, part)
    most = ceil(scene.settings.interval_s * watched.pace(uid))
    scene.wait("another pod goes on", lambda: scene.successor(training))
    part.note("another pod goes on from the checkpoint", time.time(), watched.new("training", {uid}))
    part.measure("steps of work lost, without warning", scene.lost(training, part), most, "")
    part.notes.append(f"{most} steps are an interval of {scene.settings.interval_s:g} s between two checkpoints")
    recovered_s = part.between("killed", "another pod goes on from the checkpoint")
    part.measure("time to recover: killed → another pod goes on", recovered_s, scene.targets["recover-s"], "s")
