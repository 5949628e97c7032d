"""What a successful answer must hold at least: one that makes no sense is that answer's failure, and no bug."""

from __future__ import annotations

from typing import Any

from agent.model.errors import UnreachableError


def objects(answer: Any, what: str) -> list[dict[str, Any]]:
    """The objects of a list, each with its name; ``what`` was asked for. UnreachableError.

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


def whole_node(answer: Any, what: str) -> dict[str, Any]:
    """A Node, as far as it is read. UnreachableError."""
    found = answer if isinstance(answer, dict) else {"spec": answer}
    parts = [found.get(part) for part in ("metadata", "spec", "status")]
    if not all(isinstance(part, dict | None) for part in parts):
        raise _nonsense(what, "no Node")
    metadata, spec, status = (part or {} for part in parts)
    if not all(isinstance(metadata.get(key), str) for key in ("name", "uid")):
        raise _nonsense(what, "a Node without a name or a UID")
    for texts in (metadata.get("labels") or {}, metadata.get("annotations") or {}):
        if not (isinstance(texts, dict) and all(isinstance(one, str) for one in texts.values())):
            raise _nonsense(what, "a Node whose labels or annotations are no texts")
    for items, keys in ((spec.get("taints"), ("key", "effect")), (status.get("conditions"), ("type", "status"))):
        if not _whole(items or [], keys):
            raise _nonsense(what, f"a Node with something of no {' and '.join(keys)}")
    return found


def _whole(items: Any, keys: tuple[str, ...]) -> bool:
    return isinstance(items, list) and all(
        isinstance(item, dict) and all(isinstance(item.get(key), str) for key in keys) for item in items
    )


def _nonsense(what: str, why: str) -> UnreachableError:
    return UnreachableError(f"the API server's answer to {what} makes no sense: {why}")
