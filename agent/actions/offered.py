"""What the cluster says of a node's GPUs: whether there should be some, what is offered to pods, who is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agent.actions.admissions import Admissions
from agent.actions.slices import Slices
from agent.model.world import Offer

_PRESENT = "nvidia.com/gpu.present"


def offered(
    labels: Mapping[str, str],
    status: Mapping[str, Any],
    prefixes: tuple[str, ...],
    slices: Slices,
    admissions: Admissions,
) -> Offer:
    """The Node's offer. ``prefixes`` are those of the resources that are GPUs, their MIG instances and shares too.

    By DRA they are offered in ``slices``, which are looked at where the kubelet offers no resource of a device plugin.
    """
    capacity, allocatable = _counts(status.get("capacity"), prefixes), _counts(status.get("allocatable"), prefixes)
    whose, trouble = "the kubelet's capacity of", ""
    if not any(allocatable.values()):
        slices.look()
        trouble = slices.trouble
        if not any(capacity.values()) or any(slices.allocatable.values()):
            whose, capacity, allocatable = "a DRA driver's", slices.capacity, slices.allocatable
    there = {resource: count for resource, count in sorted(capacity.items()) if count > 0}
    due = f"label {_PRESENT}=true" if labels.get(_PRESENT) == "true" else ""
    if not due and there:
        due = f"{whose} " + ", ".join(f"{count} {resource}" for resource, count in there.items())
    # A resource that another took the place of stays for some minutes, without one that is allocatable.
    ready: Mapping[str, Any] = next((one for one in status.get("conditions") or () if one["type"] == "Ready"), {})
    return Offer(due[:200], {} if any(allocatable.values()) else there, admissions.look(ready), trouble)


def _counts(quantities: Any, prefixes: tuple[str, ...]) -> Mapping[str, int]:
    whole = (quantities or {}).items()
    return {str(key): int(value) for key, value in whole if key.startswith(prefixes) and str(value).isdecimal()}
