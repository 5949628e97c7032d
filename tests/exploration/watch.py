"""Each write of an agent is looked at as it is sent and as it arrives: is what we promise still true?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agent.actions.api import taint_of
from agent.config.settings import Mode
from agent.model.names import (
    DEGRADED,
    ERROR_LABEL,
    FAULTS_ANNOTATION,
    HARD_TAINT,
    HISTORY_ANNOTATION,
    MANAGED_LABEL,
    OUT_LABEL,
    PERMIT_KIND_LABEL,
    REPLACEMENT,
    REQUESTED_ANNOTATION,
    UNHEALTHY,
)
from agent.model.ownership import OPERANDS, own_taint
from agent.remediation.records import Attempt
from agent.remediation.stored import kept

if TYPE_CHECKING:
    from tests.exploration.fleet import Fleet
    from tests.exploration.node import Node

_FORGOTTEN_S = 600.0  # for how long what was in force may still show
_RACE_S = 60.0  # from a look at the pool to the permit, at the most
_UNWANTED_S = 120.0  # whoever could not ask for so long did not wait
_NOTICED_S = 15.0  # a permit that somebody deletes just after its taint came may be taken by another
_DRAIN_S = (
    60.0 + 660.0 + 300.0 + 600.0 + 120.0
)  # besides the deadline: a checkpoint, grace, what may be late, death, rounds


class Watch:
    """It knows besides what somebody else did lately to what agents hold, which is no fault of theirs."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet, self.server = fleet, fleet.server
        self.taken: dict[str, float] = {}  # holder → when it took its withdrawn permit
        # Lease → its holder, since when somebody has waited behind that without a gap, and when last.
        self.drains: dict[str, tuple[str, float, float]] = {}
        self.came: list[float] = []  # when nodes were withdrawn in the last hour
        self.meddled: dict[str, float] = {}  # node → when somebody took its permits away
        self.reserved: set[str] = set()  # the Jobs that were written down before they were made
        self.asked: dict[str, float] = {}  # and when each was last asked for
        self.persons: set[str] = set()  # UIDs of Nodes that bear a person's label of a GPU error
        self.out: dict[str, float] = {}  # node → since when it is out of service otherwise

    def written(self, node: Node, what: str, kind: str, before: Any, after: Any) -> None:
        """A write of this node's agent has arrived."""
        self.fleet.writes += 1
        match kind:
            case "nodes":
                self._node_changed(node, before, after)
            case "leases":
                self._lease_changed(node, before, after)
            case "pods":
                self._pod_changed(node, what, before, after)
            case "jobs":
                so = after["metadata"]["name"] in self.reserved
                self.fleet.promises.keep("once", so, f"{node.name}: {what} was not reserved")
            case _:
                self._others(kind == "events", node, what)

    def sent(self, node: Node, method: str, path: str, body: Any = None) -> None:
        """What must be true when a pod is asked to leave."""
        if method == "POST" and path.endswith("/jobs"):
            self.asked[body["metadata"]["name"]] = self.fleet.now
        if method == "DELETE" or (path.endswith("/eviction") and method == "POST"):
            held = {_kind(lease) for lease in self.held(node)}
            keep, said = self.fleet.promises.keep, f"{node.name} sends {method} {path}"
            keep("evict", node.uses.mode is Mode.EVICT, f"{said} in mode {node.uses.mode}")
            keep("evict", node.was_bad() and not node.proved, f"{said} while its GPUs are well")
            keep("evict", self._tainted(node.name) or self.helped(node.name), f"{said} without a taint")
            self._drains(node)
            keep("evict", held >= {"withdrawn", "draining"} or self.helped(node.name), f"{said} with {held} alone")

    def _drains(self, node: Node) -> None:
        """One more pod is asked to leave."""
        nodes = {name for name in self.server.drains() if not self.helped(name)} | {node.name}
        limit = self._most("max_draining")
        said = f"{node.name} makes it {sorted(nodes)} that drain, {limit} allowed"
        self.fleet.promises.keep("drains", len(nodes) <= limit, said)

    def _most(self, limit: str) -> int:
        """The most generous limit in force, or that was so lately; of each pool, for each gives its own permits."""
        fleet, most = self.fleet, dict[str, int]()
        for budget in (budget for budget, until in fleet.in_force.values() if until > fleet.now - _FORGOTTEN_S):
            most[budget.pool] = max(most.get(budget.pool, 0), _number(getattr(budget, limit), len(fleet.names)))
        return sum(most.values())

    def _pod_changed(self, node: Node, path: str, before: Any, after: Any) -> None:
        on = before["spec"]["nodeName"] if before else node.name
        if path.endswith("/eviction") or after is None or after["metadata"].get("deletionTimestamp"):
            so = self._tainted(on) or self.helped(on) or on not in self.fleet.names
            self.fleet.promises.keep("evict", so, f"{path} of {node.name} arrives at a node in service")
        else:
            told = {**(after["metadata"].get("annotations") or {})}
            told.pop(REQUESTED_ANNOTATION, None)
            was = {**(before["metadata"].get("annotations") or {})}
            was.pop(REQUESTED_ANNOTATION, None)
            self._others(told == was, node, f"pod {path}: {was} became {told}")

    def _node_changed(self, node: Node, before: Any, after: Any) -> None:
        was, now = _theirs(before), _theirs(after)
        self._others(was == now, node, f"{was} became {now}")
        begun = kept(after["metadata"].get("annotations", {}).get(FAULTS_ANNOTATION)).begun
        self.reserved |= {one.job if isinstance(one, Attempt) else one.name for one in begun}
        theirs = after["metadata"]["uid"] not in self.persons or after["metadata"]["labels"].get(ERROR_LABEL) == "true"
        self._others(theirs, node, f"label {ERROR_LABEL} of a person went")
        if not withdraws(before) and withdraws(after):
            self._withdrawn(node, after)

    def _withdrawn(self, node: Node, raw: Any) -> None:
        """A taint of ours has come to a node just now."""
        self.seen()  # whoever came back a moment ago is not out
        fleet, keep = self.fleet, self.fleet.promises.keep
        holder = f"{node.name}/{raw['metadata']['uid']}"
        held = any(_holder(lease) == holder and _kind(lease) == "withdrawn" for lease in self.server.all("leases"))
        keep("permit", held or self.helped(node.name), f"{node.name} is withdrawn without a permit")
        names = {one["metadata"]["name"] for one in self.server.all("nodes") if withdraws(one)}
        tainted = {name for name in names if name == node.name or not self.helped(name, _NOTICED_S)}
        taken = self.taken.get(holder, fleet.now)
        out = {name for name, since in self.out.items() if since < taken - _RACE_S} - names
        limit = self._most("max_withdrawn")
        self._hourly(node)
        said = f"{node.name} makes it {sorted(tainted)} withdrawn, {sorted(out)} out otherwise, {limit} allowed"
        keep("budget", len(tainted) + len(out) <= limit, said)

    def _hourly(self, node: Node) -> None:
        now, hour = self.fleet.now, 3600.0
        self.came = [at for at in (*self.came, now) if at > now - hour]
        lately = [one for one, until in self.fleet.in_force.values() if until > now - hour]
        limits = {one.per_hour for one in lately}
        if 0 not in limits and not any(now - at < hour + _FORGOTTEN_S for at in self.meddled.values()):
            limit = max(limits) * len({one.pool for one in lately})
            said = f"{node.name} makes it {len(self.came)} within an hour, {limit} allowed"
            self.fleet.promises.keep("hourly", len(self.came) <= limit, said)

    def _lease_changed(self, node: Node, before: Any, after: Any) -> None:
        was, now = _holder(before), _holder(after)
        name = after["metadata"]["name"]
        self._others(node.name == now.partition("/")[0] or not now, node, f"Lease {name} is given to {now}")
        if _kind(after) == "draining" and was != now:
            self.drains[name] = now, self.fleet.now, self.fleet.now
        if was == now or _kind(after) != "withdrawn":
            return
        name, _, uid = was.partition("/")
        raw = self.server._objects.get(("nodes", "", name))
        bears = raw is not None and raw["metadata"]["uid"] == uid and withdraws(raw)
        self._others(not bears, node, f"{was} lost its permit to {now or 'nobody'} under its taint")
        if now:
            self.taken[now] = self.fleet.now

    def draining(self, node: Node) -> None:
        """A node waits for such a permit: nobody's drain may take so long."""
        now, its = self.fleet.now, f"gpu-health-agent-draining-{node.uses.budget.pool}-"
        there = {one["metadata"]["name"]: one["metadata"]["labels"] for one in self.server.all("leases")}
        for lease, (holder, since, last) in self.drains.items():
            if holder and lease.startswith(its) and lease in there:
                # One whose labels somebody took off is named, and nobody can give it back.
                began = since if now - last < _UNWANTED_S and PERMIT_KIND_LABEL in there[lease] else now
                self.drains[lease] = holder, began, now
                said = f"{node.name} waits behind {holder} for {lease}, wanted for {now - began:.0f} s"
                self.fleet.promises.keep("draining", now - began <= self.fleet.deadline_s + _DRAIN_S, said)

    def seen(self) -> None:
        """Which nodes are out of service by no doing of ours, as agents can know it."""
        out = {one["metadata"]["name"] for one in self.server.all("nodes") if _out(one)}
        self.out = {name: self.out.get(name, self.fleet.now) for name in out}

    def _tainted(self, name: str) -> bool:
        raw = self.server._objects.get(("nodes", "", name))
        return raw is not None and any(one["key"] == HARD_TAINT for one in raw["spec"].get("taints") or ())

    def helped(self, name: str, within_s: float = _FORGOTTEN_S) -> bool:
        """Whether somebody took away lately what the agent holds."""
        return self.fleet.now - self.meddled.get(name, float("-inf")) < within_s

    def held(self, node: Node) -> list[Any]:
        raw = node.raw
        holder = f"{node.name}/{raw['metadata']['uid']}" if raw else ""
        return [lease for lease in self.server.all("leases") if holder and _holder(lease) == holder]

    def _others(self, so: object, node: Node, said: str) -> None:
        self.fleet.promises.keep("others", so, f"by {node.name}: {said}")


def withdraws(raw: Any) -> bool:
    return any(taint_of(one).withdraws for one in raw["spec"].get("taints") or ())


def own_label(key: str) -> bool:
    return key in (ERROR_LABEL, *OPERANDS) or (key.startswith("gpu-health-agent/") and key != MANAGED_LABEL)


def _theirs(raw: Any) -> dict[str, Any]:
    """All of a Node that is not ours."""
    labels, annotations = ({**(raw["metadata"].get(part) or {})} for part in ("labels", "annotations"))
    for ours in (FAULTS_ANNOTATION, HISTORY_ANNOTATION):
        annotations.pop(ours, None)
    return {
        "taints": [one for one in raw["spec"].get("taints") or () if not own_taint(taint_of(one))],
        "labels": {key: value for key, value in labels.items() if not own_label(key)},
        "annotations": annotations,
        "conditions": [c for c in raw["status"]["conditions"] if c["type"] not in (UNHEALTHY, DEGRADED, REPLACEMENT)],
        "spec": {key: value for key, value in raw["spec"].items() if key != "taints"},
        "uid": raw["metadata"]["uid"],
    }


def _number(setting: int | str, size: int) -> int:
    return setting if isinstance(setting, int) else max(1, int(size * int(setting.rstrip("%")) / 100))


def _out(raw: Any) -> bool:
    ready = next((c["status"] for c in raw["status"]["conditions"] if c["type"] == "Ready"), "True")
    labelled = (raw["metadata"].get("labels") or {}).get(OUT_LABEL) == "true"
    return bool(ready != "True" or raw["spec"].get("unschedulable") or labelled)


def _kind(lease: Any) -> str:
    """By its name, which nobody takes off."""
    return str(lease["metadata"]["name"]).removeprefix("gpu-health-agent-").partition("-")[0]


def _holder(lease: Any) -> str:
    return str(((lease or {}).get("spec") or {}).get("holderIdentity") or "")
