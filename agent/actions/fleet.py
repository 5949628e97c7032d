"""The fleet as a person asks for it: its Nodes, permits, agents and their configuration. It only reads.

What it reads is the person's own to read: none of it is in ``rights.py``, for no agent asks so.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import quote

import yaml
from pydantic import ValidationError

from agent.actions.answers import pages, rows, sensible
from agent.actions.api import TABLE, Api, ask
from agent.actions.permits import Permits
from agent.actions.pool import Pool, serves
from agent.config.settings import Budget, Config
from agent.model.errors import RefusedError
from agent.model.text import unix_s
from agent.model.world import Permit

_AT_ONCE = 500
_NAME = "gpu-health-agent"  # of the DaemonSet, and the value of its pods' label
_VERSION_LABEL = "app.kubernetes.io/version"
_NOBODY = "-"  # whose permits none are


@dataclass(frozen=True, slots=True)
class Listed:
    """A Node, or a pod, as a table shows it."""

    name: str
    cells: Mapping[str, str]  # column → what kubectl prints there
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    created: float  # Unix seconds


@dataclass(frozen=True, slots=True)
class Agent:
    """The agent's pod on a node."""

    pod: str
    ready: bool
    version: str  # of its manifests; empty where an older one says none
    since: float  # Unix seconds


@dataclass(frozen=True, slots=True)
class Fleet:
    nodes: tuple[Listed, ...]
    pool: Pool
    permits: tuple[Permit, ...]
    paused: str  # why all agents are to pause
    agents: Mapping[str, Agent]  # by node


def read_fleet(api: Api, budget: Budget, selector: str = "") -> Fleet:
    """The pool's nodes, of which ``selector`` chooses some. RefusedError, UnreachableError."""
    chosen = ",".join(filter(None, (budget.pool_selector, selector)))
    path = f"/api/v1/nodes?labelSelector={quote(chosen, safe='')}"
    with ThreadPoolExecutor() as beside:  # the nodes are most of it: the rest is asked for meanwhile
        listing = beside.submit(lambda: tuple(_listed(api, path)))
        agents = beside.submit(_agents, api, budget.namespace)
        permits = _read_anew(api, budget)
        held, paused = permits.look(_NOBODY), permits.paused()
        nodes = listing.result()
        # The whole pool is not asked for a second time.
        pool = permits.pool(_NOBODY, held) if selector else _as_pool(nodes, held)
        return Fleet(nodes, pool, held, paused, agents.result())


def read_fleet_without_nodes(api: Api, budget: Budget) -> Fleet:
    """All but the nodes: who holds permits, and where agents run. RefusedError, UnreachableError."""
    permits = _read_anew(api, budget)
    held = permits.look(_NOBODY)
    return Fleet((), permits.pool(_NOBODY, held), held, permits.paused(), _agents(api, budget.namespace))


def _read_anew(api: Api, budget: Budget) -> Permits:
    permits = Permits(api, budget, time.monotonic, time.time)
    permits.renew()
    return permits


def _as_pool(nodes: Collection[Listed], held: Iterable[Permit]) -> Pool:
    """The pool as an agent reads it, by a list of all its nodes."""
    holders = {permit.holder.partition("/")[0] for permit in held if permit.withdraws}
    out = {one.name for one in nodes if not serves(one.cells.get("Status", ""), one.labels)}
    return Pool(len(nodes), frozenset(out - holders))


def deployed(api: Api, namespace: str) -> Config | None:
    """What the agents of this cluster run with; None where the DaemonSet isn't there, may not be read, or says nothing.

    UnreachableError.
    """
    try:
        made = ask(api, "GET", f"/apis/apps/v1/namespaces/{quote(namespace, safe='')}/daemonsets/{_NAME}")
        volumes = made["spec"]["template"]["spec"]["volumes"]
        name = next(volume["configMap"]["name"] for volume in volumes if volume["name"] == "config")
        path = f"/api/v1/namespaces/{quote(namespace, safe='')}/configmaps/{quote(name, safe='')}"
        return Config.model_validate(yaml.safe_load(ask(api, "GET", path)["data"]["config.yaml"]) or {})
    except RefusedError as refused:
        if refused.status in (HTTPStatus.NOT_FOUND, HTTPStatus.FORBIDDEN):
            return None
        raise
    except (LookupError, TypeError, StopIteration, yaml.YAMLError, ValidationError):
        return None


def _agents(api: Api, namespace: str) -> dict[str, Agent]:
    label = quote(f"app.kubernetes.io/name={_NAME}", safe="")
    pods = _listed(api, f"/api/v1/namespaces/{quote(namespace, safe='')}/pods?labelSelector={label}")
    return {
        pod.cells.get("Node", ""): Agent(
            pod.name, _ready(pod.cells.get("Ready", "")), pod.labels.get(_VERSION_LABEL, ""), pod.created
        )
        for pod in pods
    }


def _ready(shown: str) -> bool:
    """``2/2``"""
    ready, _, of = shown.partition("/")
    return bool(of) and ready == of


def _listed(api: Api, path: str) -> Iterator[Listed]:
    """As tables with each object's metadata: whole Nodes are 24 kB each, of which 20 are not looked at."""
    for page in pages(api, f"{path}&includeObject=Metadata", _AT_ONCE, TABLE):
        sensible(page, f"GET {path}", "", listed=True, accept=TABLE)
        for cells, metadata in rows(page):
            yield Listed(
                cells["Name"],
                cells,
                metadata.get("labels") or {},
                metadata.get("annotations") or {},
                unix_s(metadata.get("creationTimestamp")) or 0.0,
            )
