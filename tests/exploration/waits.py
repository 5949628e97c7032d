"""What an agent says it waits for: who is named must be in the way, and who may act does so within a bound."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from agent.model.names import MANAGED_LABEL, PAUSE_CONFIGMAP, PERMIT_KIND_LABEL, WITHDRAWN_LABEL
from agent.model.steps import On, Wait

if TYPE_CHECKING:
    from tests.exploration.fleet import Fleet
    from tests.exploration.node import Node

_OLD_S = 900.0  # what an agent goes by is no older: a list of Leases, the longest pause, and requests that fail
_FREE_S = 900.0
_GAP_S = 120.0  # whoever says something else meanwhile begins anew

Naming = Callable[["Fleet", "Node", str], Iterable[tuple[str, bool]]]  # who is named in it → whether they are there


def _label(key: str) -> Naming:
    return lambda _, node, __: [(key, key in ((node.raw or {}).get("metadata") or {}).get("labels", {}))]


def _paused(fleet: Fleet, _: Node, __: str) -> list[tuple[str, bool]]:
    return [("the pause", ("configmaps", "gpu-health-agent", PAUSE_CONFIGMAP) in fleet.server._objects)]


def _job(fleet: Fleet, _: Node, name: str) -> list[tuple[str, bool]]:
    job = fleet.server._objects.get(("jobs", "gpu-health-agent", name))
    return [(f"Job {name}", job is not None and not job.get("status"))]


def _pod(fleet: Fleet, node: Node, key: str) -> list[tuple[str, bool]]:
    namespace, _, name = key.partition("/")
    pod = fleet.server._objects.get(("pods", namespace, name))
    return [(f"pod {key}", pod is not None and pod["spec"]["nodeName"] == node.name)]


def _holders(kind: str) -> Naming:
    def holds(fleet: Fleet, _: Node, names: str) -> list[tuple[str, bool]]:
        leases = _leases(fleet, f"gpu-health-agent-{kind}-")
        held = {one["spec"].get("holderIdentity", "").partition("/")[0] for one in leases}
        return [(f"{kind} permit of {name}", name in held) for name in names.split(", ")]

    return holds


def _out(fleet: Fleet, _: Node, names: str) -> list[tuple[str, bool]]:
    return [(f"{name}, out of service", name in out_of_service(fleet)) for name in names.split(", ")]


def _hidden(fleet: Fleet, _: Node, name: str) -> list[tuple[str, bool]]:
    lease = fleet.server._objects.get(("leases", "gpu-health-agent", name))
    return [(f"Lease {name}", lease is not None and PERMIT_KIND_LABEL not in lease["metadata"]["labels"])]


NAMED: tuple[tuple[str, Naming], ...] = (
    (r"^(paused): ", _paused),
    (r"(dgxc.nvidia.com/nvsentinel-state)=", _label("dgxc.nvidia.com/nvsentinel-state")),
    (r"(nvidia.com/gpu-driver-upgrade-state)=", _label("nvidia.com/gpu-driver-upgrade-state")),
    (r"(nvidia.com/mig.config.state)=", _label("nvidia.com/mig.config.state")),
    (rf"label ({MANAGED_LABEL})=", _label(MANAGED_LABEL)),
    (r"^Job (\S+) (?:runs|has not begun)", _job),
    (r"^pod ([^/ ]+/[^ ,]+) ", _pod),
    (r"taken, by ([^ ]+(?:, [^ ]+)*) \(withdrawn permits", _holders("withdrawn")),
    (r"taken, by ([^ ]+(?:, [^ ]+)*) \(draining permits", _holders("draining")),
    (r"out of service otherwise: ([^ ;]+(?:, [^ ;]+)*)$", _out),
    (r"^Lease (\S+) lacks its labels", _hidden),
)


class Waits:
    """Since when each who is named was last there, and since when a permit that somebody waits for has been free."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        # Node and who is named → when they were last there, or first named, and when last named.
        self.there: dict[tuple[str, str], tuple[float, float]] = {}
        # Node, process and kind → since when one is free that it waits for, and when it last did.
        self.free: dict[tuple[str, int, str], tuple[float, float]] = {}

    def said(self, node: Node, waits: Iterable[Wait], left_free: int) -> None:
        """By a node in a round: each who is named is there, or was lately. One that stands still goes by old looks."""
        if self.fleet.stalls_s:
            return
        for wait in waits:
            for words, naming in NAMED:
                if found := re.search(words, wait.why):
                    for who, so in naming(self.fleet, node, found[1]):
                        self._named(node, who, so, wait.why)
        kinds = {
            kind
            for kind in ("withdrawn", "draining")
            for one in waits
            if one.on is On.PERMIT and f"({kind} permits," in one.why
        }
        for kind in kinds:
            self._free(node, kind, left_free)

    def _named(self, node: Node, who: str, so: bool, why: str) -> None:
        now, key = self.fleet.now, (node.name, who)
        at, last = self.there.get(key, (now, now))
        at = now if so or now - last > _GAP_S else at
        self.there[key] = at, now
        self.fleet.promises.keep("named", now - at <= _OLD_S, f"{node.name} says for {now - at:.0f} s: {why}")

    def _free(self, node: Node, kind: str, left_free: int) -> None:
        """A permit is free: whoever waits for one has it soon, or another has."""
        fleet, now, key = self.fleet, self.fleet.now, (node.name, node.process, kind)
        size, budget = len(fleet.server.all("nodes")), node.uses.budget
        limit = budget.withdrawn(size) if kind == "withdrawn" else budget.draining(size)
        leases = _leases(fleet, f"gpu-health-agent-{kind}-{budget.pool}-")
        held = {_who(one) or one["metadata"]["name"] for one in leases if _who(one) or _is_hidden(one)}
        out = out_of_service(fleet) - held if kind == "withdrawn" else set()
        since, last = self.free.get(key, (now, now))
        if len(held) + len(out) + left_free >= limit or now - last > _GAP_S:
            since = now
        self.free[key] = since, now
        said = f"{node.name} waits for a {kind} permit, of which {limit - len(held | out)} are free"
        fleet.promises.keep("free", now - since <= _FREE_S, f"{said} for {now - since:.0f} s")


def out_of_service(fleet: Fleet) -> set[str]:
    """By no permit: NotReady, cordoned or labelled, by us as well."""
    return {*fleet.wire.watch.out} | {
        one["metadata"]["name"]
        for one in fleet.server.all("nodes")
        if (one["metadata"].get("labels") or {}).get(WITHDRAWN_LABEL) == "true"
    }


def _leases(fleet: Fleet, prefix: str) -> list[dict[str, Any]]:
    return [one for one in fleet.server.all("leases") if one["metadata"]["name"].startswith(prefix)]


def _who(lease: dict[str, Any]) -> str:
    return str(lease["spec"].get("holderIdentity") or "").partition("/")[0]


def _is_hidden(lease: dict[str, Any]) -> bool:
    return PERMIT_KIND_LABEL not in lease["metadata"]["labels"]
