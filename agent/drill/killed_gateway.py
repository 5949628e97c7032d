"""Exercise: one of the gateways dies. What it was answering is lost, and a Service sends it more for a moment."""

from __future__ import annotations

import time

from agent.drill.outcome import Part
from agent.drill.scene import Scene
from agent.drill.watch import GATEWAYS, restarts


def killed_gateway(scene: Scene, part: Part) -> None:
    """The client repeats nothing, so it shows for how long one that doesn't is refused."""
    scene.kill(min(scene.watched.ready("gateway"), key=restarts), part, returns=True)
    scene.wait("all gateways are ready", lambda: len(scene.watched.ready("gateway")) >= GATEWAYS)
    part.note("all gateways are ready", time.time())
    ready_s = part.between("killed", "all gateways are ready")
    part.measure("killed → all gateways are ready", ready_s, scene.targets["ready-s"], "s")
