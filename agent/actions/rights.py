"""The whole of what the agent asks of an API server, and what it may write to a Node: daemonset/ grants just this."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal
from urllib.parse import urlsplit

from agent.config.settings import Config, Mode
from agent.model.names import (
    DEGRADED,
    DISRUPTED,
    ERROR_LABEL,
    FAULTS_ANNOTATION,
    HARD_TAINT,
    HISTORY_ANNOTATION,
    MANAGED_BY_LABEL,
    OUT_LABEL,
    PAUSE_CONFIGMAP,
    REPLACEMENT,
    REQUESTED_ANNOTATION,
    SOFT_TAINT,
    STATE_LABEL,
    UNHEALTHY,
    WITHDRAWN_LABEL,
)
from agent.model.ownership import OPERANDS

NODE_TAINTS = {HARD_TAINT: ["NoSchedule", "PreferNoSchedule"], SOFT_TAINT: ["PreferNoSchedule", "NoSchedule"]}
NODE_LABELS = (STATE_LABEL, WITHDRAWN_LABEL, OUT_LABEL, ERROR_LABEL)
NODE_ANNOTATIONS = (FAULTS_ANNOTATION, HISTORY_ANNOTATION)
NODE_CONDITIONS = (UNHEALTHY, DEGRADED)
# These change in a repair only, so only the overlay that allows repairs allows them.
REPAIR_LABELS = OPERANDS
REPAIR_CONDITIONS = (REPLACEMENT,)
# What a preset writes stands in its row (agent/model/neighbours.py); its component allows just that.
POD_ANNOTATIONS = (REQUESTED_ANNOTATION,)
POD_CONDITIONS = (DISRUPTED,)  # with drain.eviction ask_then_delete only
# Of what an Event may be about beside the own Node and pods: what controls a pod, kind and version of its API.
TOLD_CONTROLLERS = {"ReplicaSet": "apps/v1", "Deployment": "apps/v1", "StatefulSet": "apps/v1", "Job": "batch/v1"}
# By these labels the admission policies know which of their comparisons a request asks for, and refuse it without.
OURS = {MANAGED_BY_LABEL: "gpu-health-agent"}

_RULE_VERBS = ("list", "create", "patch", "delete")
_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


@dataclass(frozen=True, slots=True)
class Right:
    """One rule of RBAC: these verbs on this resource, in the agent's own namespace only where ``own``."""

    group: str
    resource: str
    verbs: tuple[str, ...]
    own: bool = False
    name: str = ""  # of the one object that it is for
    overlay: Literal["", "repair", "hardened", "dra"] = ""  # which must be applied; empty: the base grants it
    mode: Mode = Mode.EVICT  # from which on the agent needs it
    optional: bool = False  # without it the agent does as well as it can, and says itself what it is refused


RIGHTS = (
    Right("", "nodes", ("get", "patch"), mode=Mode.OBSERVE),
    Right("", "nodes", ("watch",), mode=Mode.OBSERVE, optional=True),  # makes it quicker
    Right("", "nodes", ("list",), mode=Mode.TAINT),
    Right("", "nodes/status", ("patch",), mode=Mode.OBSERVE),
    Right("", "pods", ("list",), mode=Mode.TAINT),
    Right("", "pods", ("patch", "delete")),
    Right("", "pods/eviction", ("create",)),
    Right("", "pods/status", ("patch",), overlay="hardened"),
    Right("", "persistentvolumeclaims", ("get",)),
    Right("", "persistentvolumes", ("get",)),
    Right("", "events", ("create",), mode=Mode.OBSERVE),
    Right("resource.k8s.io", "resourceslices", ("list",), mode=Mode.OBSERVE, optional=True),  # what DRA drivers offer
    Right("resource.k8s.io", "resourceclaims", ("get",), overlay="dra"),
    Right("resource.k8s.io", "devicetaintrules", _RULE_VERBS, overlay="dra", mode=Mode.OBSERVE),
    Right("apps", "replicasets", ("get",)),
    Right("policy", "poddisruptionbudgets", ("list",)),
    Right("coordination.k8s.io", "leases", ("list", "create", "update"), own=True, mode=Mode.TAINT),
    Right("", "configmaps", ("get",), own=True, name=PAUSE_CONFIGMAP, mode=Mode.TAINT),
    Right("batch", "cronjobs", ("get",), own=True, overlay="repair"),
    Right("batch", "jobs", ("list", "create"), own=True, overlay="repair"),
)


def of_mode(config: Config) -> Iterator[Right]:
    """What the agent needs as it is configured."""
    modes = list(Mode)
    overlays = {"": True, "repair": bool(config.repair.templates), "hardened": config.drain.eviction != "api"}
    overlays["dra"] = config.fences
    for right in RIGHTS:
        if modes.index(right.mode) <= modes.index(config.mode) and overlays[right.overlay] and not right.optional:
            yield right


@lru_cache(1024)
def needed(method: str, path: str, namespace: str) -> tuple[Right, str] | None:
    """The right and verb that a request needs; None for one that is declared nowhere."""
    asked = urlsplit(path)
    parts = asked.path.split("/")[1:]
    group, parts = ("", parts[2:]) if parts[0] == "api" else (parts[1], parts[3:])
    within = ""
    if parts[0] == "namespaces" and len(parts) > 2:
        within, parts = parts[1], parts[2:]
    resource, name, below = (*parts, "", "")[:3]
    resource += f"/{below}" if below else ""
    verb = _VERBS.get(method) or ("get" if name else "watch" if "watch=true" in asked.query else "list")
    for right in RIGHTS:
        there = (not right.own or within == namespace) and right.name in ("", name)
        if there and (right.group, right.resource) == (group, resource) and verb in right.verbs:
            return right, verb
    return None
