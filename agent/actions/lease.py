"""What one permit's Lease says."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from agent.model.names import FREE_LABEL, POOL_SIZE_ANNOTATION


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
