"""Whether a pod's data is on this node's own disk: it could start nowhere else."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from agent.actions.api import Api, ask
from agent.model.errors import RefusedError

_MAY_PASS = (HTTPStatus.TOO_MANY_REQUESTS, *(one for one in HTTPStatus if one >= HTTPStatus.INTERNAL_SERVER_ERROR))


class Volumes:
    """What the volumes of this node's pods are, asked once for each pod."""

    def __init__(self, api: Api, node: str) -> None:
        self._api = api
        self.names = frozenset({node})  # the node's own: its hostname may be another
        self._pinned: dict[str, bool] = {}  # by the pod's UID

    def forget_others(self, uids: Collection[str]) -> None:
        """Only these pods are still there."""
        self._pinned = {uid: pinned for uid, pinned in self._pinned.items() if uid in uids}

    def pins(self, metadata: Mapping[str, Any], spec: Mapping[str, Any]) -> bool:
        """Whether a volume binds this pod to the node. In doubt it does, and a person decides. UnreachableError."""
        uid = metadata["uid"]
        if uid not in self._pinned:
            claims = [one.get("persistentVolumeClaim") for one in spec.get("volumes") or ()]
            try:
                here = (self._is_here(metadata["namespace"], claim["claimName"]) for claim in claims if claim)
                self._pinned[uid] = any(here)
            except RefusedError as refused:
                if refused.status not in _MAY_PASS:
                    self._pinned[uid] = True
                return True
        return self._pinned[uid]

    def _is_here(self, namespace: str, claim: str) -> bool:
        path = f"/api/v1/namespaces/{quote(namespace, safe='')}/persistentvolumeclaims/{quote(claim, safe='')}"
        volume = (ask(self._api, "GET", path).get("spec") or {}).get("volumeName")
        if not volume:
            return False
        spec = ask(self._api, "GET", f"/api/v1/persistentvolumes/{quote(volume, safe='')}")["spec"]
        return "local" in spec or "hostPath" in spec or self._is_bound(spec.get("nodeAffinity") or {})

    def _is_bound(self, affinity: Mapping[str, Any]) -> bool:
        """Whether this node alone can mount it, as CSI drivers for its own disks say. One of the terms is enough."""
        terms = (affinity.get("required") or {}).get("nodeSelectorTerms") or ()
        return bool(terms) and all(self._names_us(term) for term in terms)

    def _names_us(self, term: Mapping[str, Any]) -> bool:
        """Whether it asks for this node: each driver has a label of its own, with the node's name or hostname in it."""
        wanted = (*(term.get("matchExpressions") or ()), *(term.get("matchFields") or ()))
        return any(one["operator"] == "In" and self.names.issuperset(one["values"]) for one in wanted)
