"""The drill from the kit's start to the last figure: a row for each exercise, in their order."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

from agent.drill.calm import calm
from agent.drill.choice import UnfitError
from agent.drill.cluster import MissedError
from agent.drill.deleted_pod import deleted_pod
from agent.drill.failing_replica import hanging_replica, killed_replica
from agent.drill.killed_gateway import killed_gateway
from agent.drill.killed_training import killed_training
from agent.drill.kit import Object
from agent.drill.lost_checkpoints import lost_checkpoints
from agent.drill.outcome import Part
from agent.drill.scene import Scene
from agent.drill.watch import REPLICAS
from agent.drill.withdrawn_node import withdrawn_node
from agent.drill.withdrawn_rank import withdrawn_rank

_START_S = 300.0


@dataclass(frozen=True, slots=True)
class Exercise:
    """``rate``: of the requests, where it is not that of the drill. ``refuses``: some fail in any case."""

    title: str
    run: Callable[[Scene, Part], None]
    rate: float | None = None
    refuses: bool = False
    needs: Callable[[Scene], object] = lambda _: True
    lacks: str = ""  # why it is left out where that is not there


# The folder before the training: a Job that is made anew starts its next pod 10 s after a kill, an older one later.
EXERCISES = {
    "calm": Exercise("Nothing happens: kept connections beside new ones", calm),
    "pod": Exercise("One inference pod is deleted", deleted_pod),
    "replica": Exercise("An inference replica is killed without warning", killed_replica),
    "hang": Exercise("An inference replica hangs", hanging_replica),
    "quiet": Exercise("A replica is killed while there is a request a second", killed_replica, rate=1),
    "gateway": Exercise("A gateway is killed without warning", killed_gateway, refuses=True),
    "node": Exercise("A node's GPUs turn bad: taint, checkpoint, eviction", withdrawn_node),
    "folder": Exercise(
        "The checkpoint folder is lost: back from the backup",
        lost_checkpoints,
        needs=lambda scene: scene.errands,
        lacks="the kit there is not the drill's own",
    ),
    "training": Exercise("The training is killed without warning", killed_training),
    "ranks": Exercise(
        "The node of one rank of a training of many turns bad",
        withdrawn_rank,
        needs=lambda scene: scene.ranks,
        lacks="--ranks-image names no image with PyTorch",
    ),
}


def run(scene: Scene, kit: list[Object], chosen: Collection[str] = tuple(EXERCISES)) -> None:
    """Everything in its order; MissedError and UnfitError end it."""
    planned = {name: one for name, one in EXERCISES.items() if name in chosen}
    for name in [name for name, one in planned.items() if not one.needs(scene)]:
        one = planned.pop(name)
        scene.outcome.left_out += (f"{one.title} ({one.lacks})",)
        scene.say(f"left out: {scene.outcome.left_out[-1]}")
    scene.outcome.planned = tuple(planned)
    _start(scene, kit)
    for name, one in planned.items():
        part = scene.begin(name, one.title, one.rate)
        one.run(scene, part)
        scene.end(part, one.rate, one.refuses)


def _start(scene: Scene, kit: list[Object]) -> None:
    cluster, watched, outcome = scene.cluster, scene.watched, scene.outcome
    for one in kit:
        if one["kind"] == "Job":  # last: the training goes beside a replica, so that both leave in one drill
            scene.wait("the replicas have nodes", lambda: watched.placed("inference") >= REPLICAS, _START_S)
        cluster.apply(one)
        if one["kind"] == "Namespace":
            scene.bear(cluster.home)
    scene.say(f"kit in namespace {cluster.namespace}: {len(kit)} objects applied")
    scene.wait("the training runs and the replicas and gateways are ready", watched.whole, _START_S)
    agents = cluster.agent_pods()
    if not agents:
        raise MissedError(f"no agent runs in namespace {cluster.agents}: install it first")
    scene.agent = next(iter(agents.values()))
    nodes = [node for node in cluster.nodes() if node["metadata"]["name"] in agents]
    outcome.nodes = len(nodes)
    simulation = watched.simulation(scene.agent)
    outcome.simulated_gpus = None if simulation is None else bool(simulation.get("scenario"))
    outcome.simulated_nodes = any("kwok.x-k8s.io/node" in (n["metadata"].get("annotations") or {}) for n in nodes)
    runtimes = [n["status"].get("nodeInfo", {}).get("containerRuntimeVersion", "") for n in nodes]
    outcome.process_pods = any(runtime.startswith("process://") for runtime in runtimes)
    scene.say(outcome.played)
    fits(simulation or {}, scene.settings.inject)
    scene.window("start")
    time.sleep(1.0)  # the client's first answers are of a start, and not of the calm


def fits(simulation: Object, inject: bool) -> None:
    """UnfitError where the fault would be written into a kernel log that no agent reads."""
    simulated = bool(simulation.get("scenario")) and simulation.get("kernel_log") is not False
    if inject and not simulated:
        raise UnfitError("--inject: the agents there read no simulated GPUs with a kernel log of their own")
    if simulated and not inject:
        raise UnfitError("the agents there read a simulated kernel log and not their nodes': add --inject")
