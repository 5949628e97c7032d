"""Which node may be drilled: one whose GPU pods are the kit's own alone, and that the others can stand in for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from agent.drill.kit import RANKS, Object
from agent.model.errors import AgentError
from agent.model.names import FAULTS_ANNOTATION, HARD_TAINT, MANAGED_LABEL, STATE_LABEL
from agent.model.ownership import opted_out
from agent.model.text import read_json

_PREFIX, _INDEX = "nvidia.com/", "batch.kubernetes.io/job-completion-index"


class UnfitError(AgentError):
    """No node may be drilled, and why."""


@dataclass(frozen=True, slots=True)
class Choice:
    node: str
    pods: tuple[Object, ...]  # of the kit, that will leave
    cards: Mapping[str, str]  # GPU UUID → PCI address


def choose(
    nodes: Iterable[Object], pods: Iterable[Object], agents: Mapping[str, Object], namespace: str, named: str | None
) -> Choice:
    """The node of the kit's training; UnfitError says what stands in the way. ``pods`` are all of the cluster."""
    nodes, live = list(nodes), [pod for pod in pods if not _finished(pod)]
    where = {pod["spec"].get("nodeName") for pod in _of_kit(live, namespace, "training")} - {None}
    if len(where) != 1:
        raise UnfitError("the kit's training runs on no node, or on several")
    (name,) = where
    if named and name != named:
        raise UnfitError(f"the kit's training runs on {name}, and not on {named} as --node asks: has it a free GPU?")
    return _fit(str(name), nodes, live, agents, namespace)


def choose_rank(
    nodes: Iterable[Object], pods: Iterable[Object], agents: Mapping[str, Object], namespace: str, named: str | None
) -> Choice:
    """The node of a rank, where least else leaves. That of the first, which the others meet at, is the last choice."""
    nodes, live = list(nodes), [pod for pod in pods if not _finished(pod)]
    ranks = {pod["spec"].get("nodeName"): pod["metadata"] for pod in _of_kit(live, namespace, RANKS)}
    first = {node for node, metadata in ranks.items() if metadata["labels"].get(_INDEX) == "0"}
    burden = Counter(pod["spec"].get("nodeName") for pod in live if _gpus(pod))
    troubles = [UnfitError(f"no rank of the kit's training of many runs on {named or 'a node'}")]
    for name in sorted(ranks.keys() - {None}, key=lambda name: (name in first, burden[name], name)):
        if not named or name == named:
            try:
                return _fit(str(name), nodes, live, agents, namespace)
            except UnfitError as error:
                troubles.append(error)
    raise troubles[:2][-1]  # of the first that might have been it


def _of_kit(live: list[Object], namespace: str, app: str) -> list[Object]:
    return [pod for pod in live if pod["metadata"]["namespace"] == namespace and app_of(pod) == app]


def _fit(name: str, nodes: list[Object], live: list[Object], agents: Mapping[str, Object], namespace: str) -> Choice:
    """This node, if it may be drilled."""
    for node in nodes:
        if any(taint["key"] == HARD_TAINT for taint in node["spec"].get("taints") or ()):
            raise UnfitError(f"node {_name(node)} is withdrawn already: a drill takes no second one")
    (node,) = (node for node in nodes if _name(node) == name)
    if why := _unfit(node, agents):
        raise UnfitError(f"node {name} {why}")
    there = [pod for pod in live if pod["spec"].get("nodeName") == name and _gpus(pod)]
    strangers = [_key(pod) for pod in there if pod["metadata"]["namespace"] != namespace]
    if strangers:
        raise UnfitError(
            f"on node {name} run GPU pods of others ({', '.join(strangers[:3])}): nobody's work is drilled"
        )
    _room(there, [other for other in nodes if other is not node and not _unfit(other, agents)], live)
    cards = _cards(node)
    if not cards:
        raise UnfitError(f"node {name}: its agent has stored no GPU in {FAULTS_ANNOTATION} yet")
    return Choice(name, tuple(there), cards)


def _unfit(node: Object, agents: Mapping[str, Object]) -> str:
    """Why a node can't be drilled, nor stand in for one that is."""
    name, metadata = _name(node), node["metadata"]
    labels = metadata.get("labels") or {}
    if not _is(node, "Ready"):
        return "is not Ready"
    if node["spec"].get("unschedulable"):
        return "is cordoned"
    if opted_out(labels):
        return f"bears {MANAGED_LABEL}={labels[MANAGED_LABEL]}"
    if name not in agents or not _is(agents[name], "Ready"):
        return "has no agent that is ready"
    if labels.get(STATE_LABEL) != "healthy":
        return f"is {labels.get(STATE_LABEL, 'in no state yet')}, and not healthy, as its agent says"
    return ""


def _room(leaving: list[Object], others: list[Object], live: list[Object]) -> None:
    """Every pod that leaves must find a free GPU, a replica of the inference on a node without another."""
    free = {}
    for node in others:
        used = sum(_gpus(pod) for pod in live if pod["spec"].get("nodeName") == _name(node))
        free[_name(node)] = int(node["status"].get("allocatable", {}).get("nvidia.com/gpu", 0)) - used
    taken = {pod["spec"].get("nodeName") for pod in live if app_of(pod) == "inference"}
    for pod in sorted(leaving, key=lambda pod: app_of(pod) != "inference"):
        fits = [
            name
            for name, count in free.items()
            if count >= _gpus(pod) and not (app_of(pod) == "inference" and _apart(pod) and name in taken)
        ]
        if not fits:
            raise UnfitError(
                f"no other healthy node has a free GPU for {_key(pod)}: it would wait until the drill ends"
            )
        free[fits[0]] -= _gpus(pod)


def _apart(pod: Object) -> bool:
    rules = (pod["spec"].get("affinity") or {}).get("podAntiAffinity") or {}
    return bool(rules.get("requiredDuringSchedulingIgnoredDuringExecution"))


def _cards(node: Object) -> dict[str, str]:
    """As the agent stored them on its Node."""
    try:
        stored = read_json((node["metadata"].get("annotations") or {}).get(FAULTS_ANNOTATION, "{}"))
        return {str(uuid): str(pci) for pci, (uuid, *_) in stored["cards"].items() if uuid}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def _gpus(pod: Object) -> int:
    limits = [c.get("resources", {}).get("limits") or {} for c in pod["spec"].get("containers") or ()]
    return sum(int(count) for limit in limits for name, count in limit.items() if name.startswith(_PREFIX))


def _finished(pod: Object) -> bool:
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")


def _is(one: Object, kind: str) -> bool:
    return any(c["type"] == kind and c["status"] == "True" for c in one.get("status", {}).get("conditions") or ())


def app_of(pod: Object) -> Any:
    """Which part of the kit it is."""
    return (pod["metadata"].get("labels") or {}).get("app", "")


def _name(one: Object) -> str:
    return str(one["metadata"]["name"])


def _key(pod: Object) -> str:
    return f"{pod['metadata']['namespace']}/{_name(pod)}"
