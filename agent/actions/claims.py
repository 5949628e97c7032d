"""Which devices a pod's ResourceClaims were given, and what the kubelet says of its devices.

An allocation stays as it is while a pod has it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any
from urllib.parse import quote

from agent.actions.api import Api, ask
from agent.model.devices import Device
from agent.model.errors import RefusedError
from agent.model.text import printable

_MOST_UNWELL = 8  # devices of a pod that are named
_UNREADABLE = (KeyError, TypeError, AttributeError)


class Claims:
    """Of the pods of one node, each claim asked for once."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._known: dict[str, frozenset[Device]] = {}  # by the pod's UID

    def devices(self, pod: Mapping[str, Any]) -> frozenset[Device] | None:
        """None where one of its claims can't be told, or isn't there yet. UnreachableError."""
        metadata = pod["metadata"]
        if metadata["uid"] not in self._known:
            try:
                found = [self._given(metadata["namespace"], name) for name in _names(pod)]
            except (RefusedError, *_UNREADABLE):
                return None
            self._known[metadata["uid"]] = frozenset[Device]().union(*found)
        return self._known[metadata["uid"]]

    def forget_others(self, uids: Collection[str]) -> None:
        self._known = {uid: devices for uid, devices in self._known.items() if uid in uids}

    def _given(self, namespace: str, name: str) -> frozenset[Device]:
        path = f"/apis/resource.k8s.io/v1/namespaces/{quote(namespace)}/resourceclaims/{quote(name)}"
        results = ask(self._api, "GET", path)["status"]["allocation"]["devices"]["results"]
        return frozenset(Device(one["driver"], one["pool"], one["device"]) for one in results)


def unwell(status: Mapping[str, Any]) -> tuple[str, ...]:
    """Its devices that the kubelet doesn't find healthy, where it tells of any. It raises any of ``_UNREADABLE``."""
    found = []
    for container in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        for resource in container.get("allocatedResourcesStatus") or ():
            for one in resource.get("resources") or ():
                if one.get("health", "Healthy") != "Healthy":
                    why = f" ({one['message']})" if one.get("message") else ""
                    found.append(printable(f"{resource['name']} {one['resourceID']} {one['health']}{why}")[:200])
    return tuple(found[:_MOST_UNWELL])


def _names(pod: Mapping[str, Any]) -> Iterator[str]:
    """KeyError for one that is not made yet."""
    made = {one["name"]: one.get("resourceClaimName") for one in pod["status"].get("resourceClaimStatuses") or ()}
    for one in pod["spec"].get("resourceClaims") or ():
        if name := one.get("resourceClaimName") or made[one["name"]]:  # made of its template, or none was needed
            yield name
