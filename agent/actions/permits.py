"""Withdrawal permits: numbered slot Leases that one node at a time holds. No controller, no leader."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from agent.actions.api import Api, ask
from agent.config import Budget
from agent.world import RefusedError, Slot, SlotKind

_POOL_LABEL = "gpu-health-agent/pool"
_KIND_LABEL = "gpu-health-agent/slot"
_LEASES = "/apis/coordination.k8s.io/v1/namespaces/{}/leases"


class Permits:
    """The pool's Leases as last read; a write is bound to the version that was read."""

    def __init__(self, api: Api, budget: Budget) -> None:
        self._api, self._pool = api, budget.pool
        self._path = _LEASES.format(budget.namespace)
        self._seen: dict[str, dict[str, Any]] = {}

    def look(self) -> tuple[Slot, ...]:
        """Every slot that was ever taken. RefusedError or UnreachableError: then nothing is allowed."""
        answer = ask(self._api, "GET", f"{self._path}?labelSelector={_POOL_LABEL}%3D{self._pool}")
        self._seen = {lease["metadata"]["name"]: lease for lease in answer.get("items", ())}
        return tuple(slot for lease in self._seen.values() if (slot := _slot(lease)))

    def take(self, kind: SlotKind, index: int, holder: str) -> None:
        """Take a slot; RefusedError 409 if another node was quicker."""
        name = self._name(kind, index)
        lease = self._seen.get(name)
        spec = {"holderIdentity": holder, "acquireTime": _now(), "renewTime": _now()}
        if lease is None:
            self._seen[name] = ask(
                self._api,
                "POST",
                self._path,
                {
                    "apiVersion": "coordination.k8s.io/v1",
                    "kind": "Lease",
                    "metadata": {
                        "name": name,
                        "labels": {_POOL_LABEL: self._pool, _KIND_LABEL: str(kind)},
                    },
                    "spec": spec,
                },
            )
        elif (lease.get("spec") or {}).get("holderIdentity"):
            raise RefusedError(409, f"slot {name} is held")
        else:
            self._put(lease, spec)

    def give(self, kind: SlotKind, index: int, holder: str) -> None:
        """Free our own slot; one that is another's by now is left alone."""
        lease = self._seen.get(self._name(kind, index))
        if lease and (lease.get("spec") or {}).get("holderIdentity") == holder:
            self._put(lease, {"holderIdentity": "", "renewTime": _now()})

    def _put(self, lease: dict[str, Any], spec: Mapping[str, Any]) -> None:
        name = lease["metadata"]["name"]
        renewed = {**lease, "spec": {**(lease.get("spec") or {}), **spec}}
        self._seen[name] = ask(self._api, "PUT", f"{self._path}/{name}", renewed)

    def _name(self, kind: SlotKind, index: int) -> str:
        return f"gpu-health-agent-{kind}-{self._pool}-{index}"


def _slot(lease: Mapping[str, Any]) -> Slot | None:
    """A Lease as a slot; one that only looks like ours is none."""
    metadata = lease["metadata"]
    kind = (metadata.get("labels") or {}).get(_KIND_LABEL)
    index = metadata["name"].rpartition("-")[2]
    if kind not in tuple(SlotKind) or not index.isdigit():
        return None
    return Slot(SlotKind(kind), int(index), str((lease.get("spec") or {}).get("holderIdentity") or ""))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
