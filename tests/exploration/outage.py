"""Machines, kubelets, agents and the API server's clock fail."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from tests.exploration.neighbours import Trouble

if TYPE_CHECKING:
    from tests.exploration.fleet import Fleet
    from tests.exploration.node import Node

_NOTICED_S = 40.0  # after which the Node of a kubelet that says nothing is NotReady


def death(fleet: Fleet) -> Trouble:
    """A machine dies; its Node is NotReady, may be deleted, and then made anew with another UID and other cards."""
    node = fleet.any_node()
    if not node.up:
        yield
        return
    fleet.say(f"{node.name} dies")
    node.up = False
    node.dies()
    fleet.untwin(node.name)
    _ready(fleet, node, "Unknown")
    if fleet.chance.random() < 0.5:
        fleet.later(fleet.chance.choice((10, 200, 700)), lambda: None if node.up else _deleted(fleet, node))
    yield
    new = node.raw is None
    if new:
        fleet.adds(node.name)
    _ready(fleet, node, "True")
    node.up = node.alive = True
    (node.another_card if new else node.reboots)()


def remade(fleet: Fleet) -> Trouble:
    """Somebody deletes the Node of a machine that lives on, with its agent, and it is registered anew."""
    node = fleet.any_node()
    if node.up:
        _deleted(fleet, node)
        fleet.wire.watch.meddled[node.name] = fleet.now
    yield
    if node.up and not node.raw:
        fleet.adds(node.name)


def _deleted(fleet: Fleet, node: Node) -> None:
    if node.raw:
        fleet.say(f"Node {node.name} is deleted")
        del fleet.server._objects["nodes", "", node.name]
        for job in node._jobs():  # its pod went with the Node
            if not job.get("status"):
                fleet.server.fails(job, "its pod was deleted")
                fleet.server._objects.pop(("pods", "gpu-health-agent", f"{job['metadata']['name']}-pod"), None)


def kubelet(fleet: Fleet) -> Trouble:
    """A kubelet stands still, and its machine and agent don't."""
    node = fleet.any_node()
    if not node.up:
        yield
        return
    fleet.say(f"the kubelet of {node.name} stands still")
    node.stands = True
    fleet.later(_NOTICED_S, lambda: _ready(fleet, node, "Unknown") if node.stands else None)
    yield
    node.stands = False
    if node.up:
        _ready(fleet, node, "True")


def _ready(fleet: Fleet, node: Node, status: str) -> None:
    fleet.server.change("nodes", node.name, {"status": {"conditions": [{"type": "Ready", "status": status}]}})


def server_clock(fleet: Fleet) -> Trouble:
    """The API server's clock is ahead."""
    fleet.server.ahead_s = fleet.chance.choice((10800.0, 600.0))
    yield
    fleet.server.ahead_s = 0.0


def crash_loop(fleet: Fleet) -> Trouble:
    """An agent is killed every few minutes."""
    node, every_s = fleet.any_node(), fleet.chance.choice((90.0, 200.0, 400.0))
    fleet.say(f"the agent of {node.name} is killed each {every_s:.0f} s")
    goes_on = [node]

    def killed() -> None:
        if goes_on:
            node.dies()
            fleet.later(5, partial(_rises, node))
            fleet.later(every_s, killed)

    killed()
    yield
    goes_on.clear()
    _rises(node)


def _rises(node: Node) -> None:
    if node.up:
        node.rises()
