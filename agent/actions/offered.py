"""What a Node's object says of its GPUs: whether there should be some, and what the kubelet offers to pods."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from agent.model.world import Offer

_PRESENT = "nvidia.com/gpu.present"


def offered(labels: Mapping[str, str], status: Mapping[str, Any], prefixes: Iterable[str]) -> Offer:
    """The Node's offer. ``prefixes`` are those of the resources that are GPUs, their MIG instances and shares too."""
    capacity, allocatable = (_counts(status.get(part), tuple(prefixes)) for part in ("capacity", "allocatable"))
    there = {resource: count for resource, count in sorted(capacity.items()) if count > 0}
    due = f"label {_PRESENT}=true" if labels.get(_PRESENT) == "true" else ""
    if not due and there:
        due = "the kubelet's capacity of " + ", ".join(f"{count} {resource}" for resource, count in there.items())
    # A resource that another took the place of stays for some minutes, without one that is allocatable.
    return Offer(due[:200], {} if any(allocatable.values()) else there)


def _counts(quantities: Any, prefixes: tuple[str, ...]) -> dict[str, int]:
    whole = (quantities or {}).items()
    return {str(key): int(value) for key, value in whole if key.startswith(prefixes) and str(value).isdecimal()}
