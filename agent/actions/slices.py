"""The node's GPUs as DRA drivers publish them, in its ResourceSlices: asked seldom, as a healthy node costs little."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from agent.actions.api import Api, ask
from agent.model.devices import Device, Published
from agent.model.errors import RefusedError, UnreachableError
from agent.model.ownership import GPU_DRIVER
from agent.model.text import normalise_pci, printable

_SELDOM_S, _SOON_S = 600.0, 60.0  # between two reads: of a node that is well, and while nothing is offered
_KEEPS_AWAY = ("NoSchedule", "NoExecute")
# Attributes of a device; the last two are NVIDIA's driver's own. A MIG instance has its GPU's address where the driver
# knows one, and always its GPU's UUID; its own only once it is made.
_PCI, _PARENT, _UUID = "resource.kubernetes.io/pciBusID", "parentUUID", "uuid"


class Slices:
    """What one node's slices say, as the kubelet says it of a device plugin's: how many there are, how many are free.

    A driver that is gone has no slice any more. So there are as many devices as this life saw at once.
    """

    def __init__(self, api: Api, node: str, clock: Callable[[], float]) -> None:
        self._api, self._clock = api, clock
        self._path = f"/apis/resource.k8s.io/v1/resourceslices?fieldSelector={quote(f'spec.nodeName={node}', safe='')}"
        self._asked, self._silent = float("-inf"), False
        self.capacity: Mapping[str, int] = {}
        self.allocatable: Mapping[str, int] = {}
        self.devices: tuple[Published, ...] = ()  # of all drivers; those of an answer that never came stay
        self.trouble = ""  # why they are not known; where nobody serves them there are none

    def look(self, soon: bool = False) -> None:
        """Read them anew if it is time; ``soon``: somebody asks for the devices.

        RefusedError, UnreachableError for that one, where none are known: silence doesn't say that there are none.
        """
        needed = soon and not self.devices
        soon = soon or (any(self.capacity.values()) and not any(self.allocatable.values()))
        lately = self._clock() - self._asked < (_SOON_S if soon else _SELDOM_S)
        if lately and not (needed and self._silent):
            return
        self._asked = self._clock()
        try:
            published, free, devices = _counts(ask(self._api, "GET", self._path)["items"])
        except (RefusedError, UnreachableError) as error:
            status = error.status if isinstance(error, RefusedError) else None
            self.trouble = "" if status == HTTPStatus.NOT_FOUND else str(error)
            self._silent = not isinstance(error, RefusedError) or error.passes
            if needed and self._silent:
                said = f"ResourceSlices: {error}"
                if isinstance(error, RefusedError):
                    raise RefusedError(error.status, said, wait_s=error.wait_s) from error
                raise UnreachableError(said) from error
        else:
            self.trouble, self._silent = "", False
            most = {**published, **self.capacity}
            self.capacity = {key: max(published[key], self.capacity.get(key, 0)) for key in most}
            self.allocatable, self.devices = free, devices


def _counts(items: list[dict[str, Any]]) -> tuple[Counter[str], Counter[str], tuple[Published, ...]]:
    """How many devices the GPU driver publishes, how many of them no taint keeps from new pods, and every driver's
    devices.

    A pool's slices of an older generation are on their way out.
    """
    published, free, devices = Counter[str](), Counter[str](), list[Published]()
    specs = [item["spec"] for item in items]
    latest: dict[tuple[str, str], int] = {}
    for spec in specs:
        pool = spec["driver"], spec["pool"]["name"]
        latest[pool] = max(spec["pool"]["generation"], latest.get(pool, 0))
    for spec in specs:
        if spec["pool"]["generation"] < latest[spec["driver"], spec["pool"]["name"]]:
            continue
        name = f"devices of {spec['driver']}"
        for device in spec.get("devices") or ():
            devices.append(_published(spec, device))
            if spec["driver"] == GPU_DRIVER:
                published[name] += 1
                free[name] += not any(taint["effect"] in _KEEPS_AWAY for taint in device.get("taints") or ())
    return published, free, tuple(devices)


def _published(spec: Mapping[str, Any], device: Mapping[str, Any]) -> Published:
    attributes = device.get("attributes") or {}
    parent, uuid, pci = ((attributes.get(key) or {}).get("string") for key in (_PARENT, _UUID, _PCI))
    taints = (f"{one['key']}={one.get('value', '')}:{one['effect']}" for one in device.get("taints") or ())
    try:
        address = normalise_pci(pci) if isinstance(pci, str) else ""
    except ValueError:
        address = ""
    named = Device(str(spec["driver"]), str(spec["pool"]["name"]), str(device["name"]))
    return Published(named, str(parent or uuid or ""), address, tuple(map(printable, taints)))
