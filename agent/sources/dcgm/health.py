"""The engine's health check: what it names, from when on its silence means something, and whether there is one."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any

from agent.model.observation import Value
from agent.sources.dcgm.bindings import Bindings, said
from agent.sources.dcgm.fields import text

_EVERY_SYSTEM = 0xFFFFFFFF
_NONE = (-6, -33)  # NOT_SUPPORTED; MODULE_NOT_LOADED, as one that is on the engine's denylist
_TRIGGERED = re.compile(r"[Tt]riggered by XID (\d+)")
_XID_CODES = (81, 101, 120, 131)  # UNCONTAINED_ERROR, XID_ERROR, FALLEN_OFF_BUS, CONTAINED_ERROR


class Health:
    """Of one group of GPUs. Without it values and Xids are read all the same: ``lacks`` says why there is none.

    Every other error of the engine's is raised: the bindings' DCGMError.
    """

    def __init__(self, bindings: Bindings, handle: Any, group: Any, every_s: float, keep_s: float) -> None:
        self._b, self._handle, self._group, self._every_s = bindings, handle, group, every_s
        self._set_at, self._due = time.monotonic(), 0.0
        self.lacks = ""
        try:
            bindings.agent.dcgmHealthSet_v2(handle, group, _EVERY_SYSTEM, int(every_s * 1e6), keep_s)
        except bindings.structs.DCGMError as error:
            self._is_none(error)

    def due(self, now: float) -> bool:
        """Whether it is time for the next check; ``now`` is monotonic seconds."""
        if self.lacks or now < self._due:
            return False
        self._due = now + self._every_s
        return True

    def counts(self, now: float) -> bool:
        """Whether what a check doesn't name has ended: the first ones have no samples to judge yet."""
        return not self.lacks and now - self._set_at >= 2 * self._every_s

    def check(self) -> Iterator[tuple[int, int, int, dict[str, Value], str]]:
        """Each incident: entity group, entity, code, values, and the engine's words."""
        try:
            response = self._b.agent.dcgmHealthCheck(self._handle, self._group)
        except self._b.structs.DCGMError as error:
            self._is_none(error)
            return
        for incident in response.incidents[: response.incidentCount]:
            code, words, entity = int(incident.error.code), text(incident.error, "msg"), incident.entityInfo
            values: dict[str, Value] = {
                "system": int(incident.system),  # 0xFFFFFFFF for some Xids: no single bit
                "health": int(incident.health),
                "severity": int(self._b.errors.dcgmErrorGetPriorityByCode(code)),
            }
            by = _TRIGGERED.search(words)
            if by or code in _XID_CODES or incident.system == _EVERY_SYSTEM:
                values["xid"] = int(by[1]) if by else 0
            yield int(entity.entityGroupId), int(entity.entityId), code, values, words[:500]

    def _is_none(self, error: Any) -> None:
        if error.value not in _NONE:
            raise error
        self.lacks = f"{said(error)} (DCGM error {error.value})"
