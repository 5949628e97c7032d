"""Exercise: nothing happens. What a kept connection costs beside a new one."""

from __future__ import annotations

import time

from agent.drill.outcome import Part
from agent.drill.scene import Scene

_REQUESTS, _LEAST_S = 60, 3.0


def calm(scene: Scene, part: Part) -> None:
    """Compared, because a machine that is busy makes both slow: the connection to the gateway, or its first bytes."""
    time.sleep(max(_LEAST_S, _REQUESTS / scene.settings.rate))
    report = scene.wait("the client's report", scene.report, 30)
    said = next(one for one in report["windows"] if one["name"] == part.name)["connections"]
    kept_s, new_s = said["kept"]["p50_s"], said["new"]["p50_s"]
    later_s = None if kept_s is None or new_s is None else max(0.0, kept_s - new_s)
    part.measure("median answer on a kept connection, later than on a new one", later_s, scene.targets["kept-s"], "s")
