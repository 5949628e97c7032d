"""The pool's nodes: how many there are, and which are out of service."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

from agent.actions.api import TABLE, Api, ask
from agent.model.names import OUT_LABEL, WITHDRAWN_LABEL


@dataclass(frozen=True, slots=True)
class Pool:
    size: int = 0
    out: frozenset[str] = frozenset()  # NotReady, cordoned, or labelled as withdrawn, by us or by others


def read_pool(api: Api, selector: str) -> Pool:
    """Ask the API server how the pool is. RefusedError, UnreachableError."""
    every = _nodes(api, selector)
    # A selector knows no "or": so we ask for those that bear neither label.
    bare = ",".join(filter(None, (selector, f"{OUT_LABEL}!=true", f"{WITHDRAWN_LABEL}!=true")))
    serving = {node for node, status in _nodes(api, bare).items() if status == "Ready"}
    return Pool(len(every), frozenset(every.keys() - serving))


def _nodes(api: Api, selector: str) -> dict[str, str]:
    """Name → status of each Node, as kubectl shows them.

    Asked as a table: a thousand Nodes whole are 20 MB, and in a bad hour every agent asks at once.
    """
    path = f"/api/v1/nodes?labelSelector={quote(selector, safe='')}&includeObject=None&resourceVersion=0"
    table = ask(api, "GET", path, accept=TABLE)
    columns = [column["name"] for column in table["columnDefinitions"]]
    name, status = columns.index("Name"), columns.index("Status")
    return {str(row["cells"][name]): str(row["cells"][status]) for row in table.get("rows") or ()}
