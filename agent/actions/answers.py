"""What a successful answer must hold at least: one that makes no sense is that answer's failure, and no bug."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from agent.actions.api import JSON, TABLE, Api, ask
from agent.actions.forms import TABLE_FORM, form_of, wrong
from agent.model.errors import RefusedError, UnreachableError

_UNKNOWN = HTTPStatus.INTERNAL_SERVER_ERROR  # from here on nobody knows whether the server carries the request out
_HOOK_FAILED = "failed calling webhook"  # so the API server says that it could not ask a webhook, and did nothing
_AT_ONCE = 100  # of a long list: so many Nodes are 2 MB


def sensible(answer: Any, what: str, resource: str, listed: bool, accept: str = JSON) -> None:
    """Check the answer to ``what``: whether all that is read of such an object has its form. UnreachableError.

    Of a pod in a list only its name is checked: whatever else makes no sense in it is that pod's trouble. A write may
    be answered with a Status, whose status is a word.
    """
    if accept == TABLE:
        _table(answer, what, resource)
    elif listed:
        for one in _objects(answer, what):
            if resource != "pods" and (why := wrong(one, form_of(resource))):
                raise _nonsense(what, f"{one['metadata']['name']}: {why}")
    elif what.startswith("GET") or not isinstance(answer, dict) or answer.get("kind") != "Status":
        _whole(answer, what, resource)


def may_arrive(error: RefusedError | UnreachableError) -> bool:
    """Whether the server may carry out the request even so."""
    return not isinstance(error, RefusedError) or (error.status >= _UNKNOWN and _HOOK_FAILED not in error.sentence)


def _objects(answer: Any, what: str) -> list[dict[str, Any]]:
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
    resource = path.partition("?")[0].rpartition("/")[2]
    for page in pages(api, path, _AT_ONCE):
        sensible(page, f"GET {path}", resource, listed=True)
        yield from page["items"]


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
    """The answer as a Node, checked as far as it is read; it has a spec and a status. UnreachableError."""
    _whole(answer, what, "nodes")
    return {**answer, "spec": answer.get("spec") or {}, "status": answer.get("status") or {}}


def _whole(answer: Any, what: str, resource: str) -> None:
    if why := wrong(answer, form_of(resource)):
        raise _nonsense(what, why)


def _table(answer: Any, what: str, resource: str) -> None:
    if why := wrong(answer, TABLE_FORM):
        raise _nonsense(what, f"no table of {resource}: {why}")
    names = {column["name"] for column in answer["columnDefinitions"]}
    if missing := {"Name", "Holder" if resource == "leases" else "Status"} - names:
        raise _nonsense(what, f"no table of {resource}: without the column {missing.pop()}")
    if any(len(row["cells"]) != len(answer["columnDefinitions"]) for row in answer.get("rows") or ()):
        raise _nonsense(what, f"no table of {resource}: a row of other columns")


def _nonsense(what: str, why: str) -> UnreachableError:
    return UnreachableError(f"the API server's answer to {what} makes no sense: {why}")
