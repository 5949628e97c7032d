"""Exercise: the folder of checkpoints is lost. A training and a replica that start anew go on from the backup."""

from __future__ import annotations

import time

from agent.drill.outcome import Part
from agent.drill.scene import Scene
from agent.drill.watch import restarts


def lost_checkpoints(scene: Scene, part: Part) -> None:
    """Lost is moved aside: whatever stands in that folder is still there afterwards."""
    watched, cluster = scene.watched, scene.cluster
    (training,) = watched.live("training")
    uid = training["metadata"]["uid"]
    copied = scene.wait("the training has saved", lambda: watched.hear(training).get("saved_step"))
    copy, lose, job = scene.errands
    scene.finish(copy)
    part.note("the backup has a copy", time.time())
    cluster.end(job)
    scene.wait("the training has ended", lambda: uid not in watched.uids())
    part.note("the training is ended", time.time(), [training["metadata"]["name"]])
    scene.finish(lose)
    part.note("the folder is lost", time.time())
    scene.say("the checkpoint folder is moved away")
    replica = min(watched.ready("inference"), key=restarts)
    scene.kill(replica, part, returns=True)
    cluster.apply(job)
    went_on = scene.wait("another training goes on", lambda: scene.successor(training))["restored_step"]
    part.note("another training goes on from the backup", time.time(), watched.new("training", {uid}))
    scene.wait("all replicas are ready", scene.replicas_ready)
    part.note("all replicas are ready", time.time())
    served = scene.wait("the replica tells its step", lambda: watched.served_step(replica), 30)
    part.notes += [
        f"the training had saved step {copied} before it was copied, and was ended later; another went on from step "
        f"{went_on}, the replica that was killed serves step {served}"
    ]
    lost = max(0, copied - min(went_on, served))
    part.measure("steps of work lost that the backup had", lost, scene.targets["steps-copied"], "")
    recovered_s = part.between("the folder is lost", "another training goes on from the backup")
    part.measure("time to recover: lost → another training goes on", recovered_s, scene.targets["recover-s"], "s")
