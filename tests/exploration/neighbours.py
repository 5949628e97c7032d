"""What others do to the cluster: labels, taints, pods that stay, and meddling with what is ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from agent.model.names import (
    ERROR_LABEL,
    FAULTS_ANNOTATION,
    HARD_TAINT,
    HISTORY_ANNOTATION,
    PAUSE_CONFIGMAP,
    PERMIT_KIND_LABEL,
    STATE_LABEL,
    WITHDRAWN_LABEL,
)
from tests.exploration.server import OBSTACLES

if TYPE_CHECKING:
    from tests.exploration.fleet import Fleet
    from tests.exploration.node import Node

Trouble = Iterator[None]
_OUT_TAINTS = ("ToBeDeletedByClusterAutoscaler", "karpenter.sh/disrupted", "aws-node-termination-handler/spot-itn")
_CONDITION = {"type": "DiskPressure", "status": "True", "reason": "Full", "message": "of others"}


def labelled(key: str, *values: str) -> Callable[[Fleet], Trouble]:
    """Somebody labels a node, and takes the label off."""

    def trouble(fleet: Fleet) -> Trouble:
        name = fleet.chance.choice(fleet.names)
        fleet.server.change("nodes", name, {"metadata": {"labels": {key: fleet.chance.choice(values)}}})
        yield
        fleet.server.change("nodes", name, {"metadata": {"labels": {key: None}}})

    return trouble


def others_taint(fleet: Fleet) -> Trouble:
    """An autoscaler, another remediator or a team taints a node."""
    name, key = fleet.chance.choice(fleet.names), fleet.chance.choice((*_OUT_TAINTS, "team.example.com/reserved"))
    taint = {"key": key, "effect": fleet.chance.choice(("NoSchedule", "NoExecute", "PreferNoSchedule"))}
    fleet.server.retaint(name, lambda taints: [*(one for one in taints if one["key"] != key), taint])
    yield
    fleet.server.retaint(name, lambda taints: [one for one in taints if one["key"] != key])


def others_words(fleet: Fleet) -> Trouble:
    """Other controllers write to a Node all the time."""
    name = fleet.chance.choice(fleet.names)
    body: dict[str, Any] = {"metadata": {"labels": {"example.com/a": str(fleet.now)}}}
    body["metadata"]["annotations"] = {"example.com/b": str(fleet.now)}
    body["status"] = {"conditions": [_CONDITION]}
    fleet.server.change("nodes", name, body)
    yield
    fleet.server.change("nodes", name, {"status": {"conditions": [{**_CONDITION, "status": "False"}]}})


def pause(fleet: Fleet) -> Trouble:
    fleet.server._store(
        "configmaps", "gpu-health-agent", {"metadata": {"name": PAUSE_CONFIGMAP}, "data": {"paused": "true"}}
    )
    yield
    fleet.server._objects.pop(("configmaps", "gpu-health-agent", PAUSE_CONFIGMAP), None)


def obstacle(fleet: Fleet) -> Trouble:
    """A budget or a webhook refuses every eviction of a namespace."""
    namespace = fleet.chance.choice(("research", "web"))
    fleet.server.obstacles[namespace] = fleet.chance.choice(OBSTACLES)
    yield
    fleet.server.obstacles.pop(namespace, None)


def endless_pods(fleet: Fleet) -> Trouble:
    """A workload's pods, once asked, terminate without end."""
    work = fleet.chance.choice(sorted(fleet.server.manners))
    manner = fleet.server.manners[work]
    fleet.server.manners[work] = replace(manner, ends_s=float("inf"))
    yield
    fleet.server.manners[work] = manner
    for (namespace, name), at in fleet.server.ends.items():
        if at == float("inf") and f"{namespace}/{name.rpartition('-')[0]}" == work:
            fleet.server.ends[namespace, name] = fleet.now


def lease_deleted(fleet: Fleet) -> Trouble:
    """Somebody deletes a permit's Lease."""
    leases = [one["metadata"]["name"] for one in fleet.server.all("leases")]
    if leases:
        _without(fleet, fleet.chance.choice(leases))
    yield


def reinstalled(fleet: Fleet) -> Trouble:
    """The namespace is deleted and made anew, with every Lease in it."""
    for lease in fleet.server.all("leases"):
        _without(fleet, lease["metadata"]["name"])
    yield


def _without(fleet: Fleet, lease: str) -> None:
    raw = fleet.server._objects.pop(("leases", "gpu-health-agent", lease))
    holder = str(raw["spec"].get("holderIdentity") or "")
    fleet.say(f"{lease} of {holder or 'nobody'} is deleted")
    fleet.wire.watch.meddled[holder.partition("/")[0]] = fleet.now


def error_label(fleet: Fleet) -> Trouble:
    """A person says of a node that its GPUs are bad, by the label that we write as well."""
    node = fleet.any_node()
    uid = node.raw["metadata"]["uid"] if node.raw and ERROR_LABEL not in node.raw["metadata"]["labels"] else ""
    if uid:
        fleet.server.change("nodes", node.name, {"metadata": {"labels": {ERROR_LABEL: "true"}}})
        fleet.wire.watch.persons.add(uid)
    yield
    fleet.wire.watch.persons.discard(uid)
    if node.raw and node.raw["metadata"]["uid"] == uid:  # a Node made anew lost it
        fleet.server.change("nodes", node.name, {"metadata": {"labels": {ERROR_LABEL: None}}})


def unlabelled(fleet: Fleet) -> Trouble:
    """A Lease of ours loses its label."""
    leases = [one["metadata"]["name"] for one in fleet.server.all("leases")]
    name = fleet.chance.choice(leases) if leases else ""
    for kind in (None, name.removeprefix("gpu-health-agent-").partition("-")[0]):
        body = {"metadata": {"labels": {PERMIT_KIND_LABEL: kind}}}
        fleet.server.change("leases", name, body, "gpu-health-agent")
        if kind is None:
            yield


def stripped(fleet: Fleet) -> Trouble:
    """Somebody takes from a Node what is ours: the taint, the labels, or what the agent has stored."""
    node = fleet.any_node()
    fleet.wire.watch.persons.discard(node.raw["metadata"]["uid"] if node.raw else "")
    match fleet.chance.randrange(3):
        case 0:
            without(fleet, node)
        case 1:
            body = dict.fromkeys((ERROR_LABEL, STATE_LABEL, WITHDRAWN_LABEL))
            fleet.server.change("nodes", node.name, {"metadata": {"labels": body}})
        case _:
            body = dict.fromkeys((FAULTS_ANNOTATION, HISTORY_ANNOTATION))
            fleet.server.change("nodes", node.name, {"metadata": {"annotations": body}})
    fleet.wire.watch.meddled[node.name] = fleet.now
    yield


def without(fleet: Fleet, node: Node) -> None:
    """Its hard taint, by a person's hand."""
    fleet.server.retaint(node.name, lambda taints: [one for one in taints if one["key"] != HARD_TAINT])


def webhook(fleet: Fleet) -> Trouble:
    """An admission webhook refuses each write of a kind, or fails."""
    kind = fleet.chance.choice(("nodes", "leases", "jobs", "events"))
    fleet.say(f"a webhook refuses writes of {kind}")
    fleet.server.refuses[kind] = fleet.chance.choice(("webhook", "broken"))
    yield
    fleet.server.refuses.pop(kind, None)
