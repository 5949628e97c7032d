"""What one permit's Lease says."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any

from agent.model.errors import RefusedError, UnreachableError
from agent.model.names import FREE_LABEL, POOL_SIZE_ANNOTATION
from agent.model.text import printable


def rewritten(
    lease: Mapping[str, Any], spec: Mapping[str, Any], words: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """With these fields of its spec, of which the holder is one, and annotations. A free one is labelled as free."""
    metadata = lease["metadata"]
    labels = {key: value for key, value in (metadata.get("labels") or {}).items() if key != FREE_LABEL}
    labels |= {} if spec["holderIdentity"] else {FREE_LABEL: "true"}
    annotations = {**(metadata.get("annotations") or {}), **(words or {})}
    return {
        **lease,
        "metadata": {**metadata, "labels": labels, "annotations": annotations},
        "spec": {**(lease.get("spec") or {}), **spec},
    }


def as_asked(answer: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to a write of one, if that was done: a permit that only seems to be ours is none.

    UnreachableError: nobody knows. RefusedError: somebody changed it on its way, a webhook say.
    """
    name, metadata = asked["metadata"]["name"], answer.get("metadata") or {}
    if metadata.get("name") != name or not isinstance(metadata.get("resourceVersion"), str):
        raise UnreachableError(
            f"the API server's answer to a write of Lease {name} makes no sense: it is no such Lease"
        )
    changed = f"Lease {name} was not written as asked: "
    if holder(answer) != holder(asked):
        changed += f"it is held by {printable(holder(answer)) or 'nobody'} now"
    elif pool_size(answer) != pool_size(asked):  # by it the next look knows whether the pool was read
        changed += f"its annotation {POOL_SIZE_ANNOTATION} is {printable(pool_size(answer)) or 'gone'}"
    else:
        return {**answer}
    raise RefusedError(HTTPStatus.UNPROCESSABLE_ENTITY, f"{changed}; does a webhook change it?")


def pool_size(lease: Mapping[str, Any]) -> str:
    """How large the pool was when it was taken, as whoever took it says."""
    return str(((lease.get("metadata") or {}).get("annotations") or {}).get(POOL_SIZE_ANNOTATION, ""))


def largest_pool(leases: Iterable[Mapping[str, Any]]) -> int:
    return max((int(size) for size in map(pool_size, leases) if re.fullmatch("[0-9]{1,6}", size)), default=0)


def holder(lease: Mapping[str, Any]) -> str:
    return str((lease.get("spec") or {}).get("holderIdentity") or "")


def mine(lease: Mapping[str, Any], own: str) -> bool:
    """Whether this node holds it: as it is, or as a Node object of its name that is gone."""
    return holder(lease).partition("/")[0] == own.partition("/")[0]
