"""What a successful answer must hold at least: one that makes no sense is that answer's failure, and no bug."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from agent.actions.api import JSON, TABLE, Api, ask
from agent.model.errors import RefusedError, UnreachableError

_UNKNOWN = HTTPStatus.INTERNAL_SERVER_ERROR  # from here on nobody knows whether the server carries the request out
_HOOK_FAILED = "failed calling webhook"  # so the API server says that it could not ask a webhook, and did nothing
_PARTS = ("metadata", "spec", "status", "data")
_AT_ONCE = 100  # of a long list: so many Nodes are 2 MB


def sensible(answer: Any, what: str, resource: str, listed: bool, accept: str = JSON) -> None:
    """Check the answer to ``what``, as far as its kind tells what must be in it. UnreachableError.

    Of a pod in a list only its name is checked: whatever else makes no sense in it is that pod's trouble.
    """
    if not isinstance(answer, dict):
        raise _nonsense(what, "no object")
    if accept == TABLE:
        _table(answer, what, resource)
        return
    if not listed and answer.get("kind") == "Status":  # the answer to an eviction; its status is a word
        return
    for one in objects(answer, what) if listed else [answer]:
        if not (listed and resource == "pods") and not all(isinstance(one.get(part), dict | None) for part in _PARTS):
            raise _nonsense(what, "an object of another form")
        if listed and resource == "leases" and not isinstance(one["metadata"].get("resourceVersion"), str):
            raise _nonsense(what, "a Lease without a version")


def may_arrive(error: RefusedError | UnreachableError) -> bool:
    """Whether the server may carry out the request even so."""
    return not isinstance(error, RefusedError) or (error.status >= _UNKNOWN and _HOOK_FAILED not in error.sentence)


def objects(answer: Any, what: str) -> list[dict[str, Any]]:
    """The objects of a list, each with its name. UnreachableError.

    A list without its items is not an empty one: a node without pods would be a drained one.
    """
    items = answer.get("items") if isinstance(answer, dict) else None
    if not isinstance(items, list):
        raise _nonsense(what, "a list without its items")
    for item in items:
        metadata = item.get("metadata") if isinstance(item, dict) else None
        if not (isinstance(metadata, dict) and isinstance(metadata.get("name"), str)):
            raise _nonsense(what, "a list of something without a name")
    return items


def pages(api: Api, path: str, at_once: int, accept: str = JSON) -> Iterator[dict[str, Any]]:
    """A list that grows with the cluster, page by page: whoever takes one checks it. RefusedError, UnreachableError."""
    more, sign = "", "&" if "?" in path else "?"
    while True:
        page = ask(api, "GET", f"{path}{sign}limit={at_once}&continue={quote(more, safe='')}", accept=accept)
        yield page
        more = str((page.get("metadata") or {}).get("continue") or "")
        if not more:
            return


def paged(api: Api, path: str) -> Iterator[dict[str, Any]]:
    """The objects of such a list. RefusedError, UnreachableError."""
    for page in pages(api, path, _AT_ONCE):
        yield from objects(page, f"GET {path}")


def rows(table: Mapping[str, Any]) -> Iterator[tuple[dict[str, str], dict[str, Any]]]:
    """What a table shows of each object: column → what kubectl prints there; and its metadata, if it was asked for."""
    columns = [str(column["name"]) for column in table["columnDefinitions"]]
    for row in table.get("rows") or ():
        cells = dict(zip(columns, map(str, row["cells"]), strict=False))
        yield cells, (row.get("object") or {}).get("metadata") or {}


def ask_node(api: Api, method: str, path: str, body: Any = None, content_type: str = JSON) -> dict[str, Any]:
    """A request that is answered with a Node, as far as it is read. RefusedError, UnreachableError."""
    return whole_node(ask(api, method, path, body, content_type), f"{method} {path}")


def whole_node(answer: Any, what: str) -> dict[str, Any]:
    """The answer as a Node, checked as far as it is read. UnreachableError."""
    sensible(answer, what, "nodes", listed=False)
    metadata, spec, status = (answer.get(part) or {} for part in ("metadata", "spec", "status"))
    if not all(isinstance(metadata.get(key), str) for key in ("name", "uid")):
        raise _nonsense(what, "a Node without a name or a UID")
    for texts in (metadata.get("labels") or {}, metadata.get("annotations") or {}):
        if not (isinstance(texts, dict) and all(isinstance(one, str) for one in texts.values())):
            raise _nonsense(what, "a Node whose labels or annotations are no texts")
    for part, kind, keys in ((spec, "taints", ("key", "effect")), (status, "conditions", ("type", "status"))):
        if not _have(part.get(kind) or [], keys):
            raise _nonsense(what, f"a Node with {kind} that have no {' or no '.join(keys)}")
    return dict(answer)


def _table(answer: dict[str, Any], what: str, resource: str) -> None:
    columns, rows = answer.get("columnDefinitions"), answer.get("rows") or []
    names = [one["name"] for one in columns] if isinstance(columns, list) and _have(columns, ("name",)) else []
    cells = [row.get("cells") if isinstance(row, dict) else None for row in rows] if isinstance(rows, list) else [None]
    shown = {"Name", "Holder" if resource == "leases" else "Status"}
    if not shown <= {*names} or not all(isinstance(c, list) and len(c) == len(names) for c in cells):
        raise _nonsense(what, f"no table of {resource}")


def _have(items: Any, keys: tuple[str, ...]) -> bool:
    return isinstance(items, list) and all(
        isinstance(item, dict) and all(isinstance(item.get(key), str) for key in keys) for item in items
    )


def _nonsense(what: str, why: str) -> UnreachableError:
    return UnreachableError(f"the API server's answer to {what} makes no sense: {why}")
