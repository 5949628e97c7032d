"""The node's GPUs as DRA drivers publish them, in its ResourceSlices: asked seldom, as a healthy node costs little."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from agent.actions.api import Api, ask
from agent.model.errors import RefusedError, UnreachableError
from agent.model.ownership import GPU_DRIVER

_SELDOM_S, _SOON_S = 600.0, 60.0  # between two reads: of a node that is well, and while nothing is offered
_KEEPS_AWAY = ("NoSchedule", "NoExecute")
_UNREADABLE = (KeyError, TypeError, AttributeError, ValueError)


class Slices:
    """What one node's slices say, as the kubelet says it of a device plugin's: how many there are, how many are free.

    A driver that is gone has no slice any more. So there are as many devices as this life saw at once.
    """

    def __init__(self, api: Api, node: str, clock: Callable[[], float]) -> None:
        self._api, self._clock = api, clock
        self._path = f"/apis/resource.k8s.io/v1/resourceslices?fieldSelector={quote(f'spec.nodeName={node}', safe='')}"
        self._asked = float("-inf")
        self.capacity: Mapping[str, int] = {}
        self.allocatable: Mapping[str, int] = {}
        self.trouble = ""  # why they are not known; where nobody serves them there are none

    def look(self) -> None:
        """Read them anew if it is time."""
        withheld = any(self.capacity.values()) and not any(self.allocatable.values())
        if self._clock() - self._asked < (_SOON_S if withheld else _SELDOM_S):
            return
        self._asked = self._clock()
        try:
            published, free = _counts(ask(self._api, "GET", self._path)["items"])
        except RefusedError as refused:
            self.trouble = "" if refused.status == HTTPStatus.NOT_FOUND else str(refused)
        except UnreachableError as silence:
            self.trouble = str(silence)
        else:
            self.trouble = ""
            most = {**published, **self.capacity}
            self.capacity = {key: max(published[key], self.capacity.get(key, 0)) for key in most}
            self.allocatable = free


def _counts(items: list[dict[str, Any]]) -> tuple[Counter[str], Counter[str]]:
    """How many devices the GPU driver publishes, and how many of them no taint keeps from new pods. UnreachableError.

    A pool's slices of an older generation are on their way out.
    """
    published, free = Counter[str](), Counter[str]()
    try:
        specs = [item["spec"] for item in items if item["spec"]["driver"] == GPU_DRIVER]
        latest: dict[str, int] = {}
        for pool in (spec["pool"] for spec in specs):
            latest[pool["name"]] = max(pool["generation"], latest.get(pool["name"], 0))
        for spec in specs:
            if spec["pool"]["generation"] < latest[spec["pool"]["name"]]:
                continue
            name = f"devices of {spec['driver']}"
            for device in spec.get("devices") or ():
                published[name] += 1
                free[name] += not any(taint["effect"] in _KEEPS_AWAY for taint in device.get("taints") or ())
    except _UNREADABLE as error:
        why = f"the API server's answer to GET resourceslices makes no sense: {type(error).__name__}"
        raise UnreachableError(why) from error
    return published, free
