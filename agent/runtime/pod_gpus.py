"""Which pod holds which GPU, as the kubelet last told: asked seldom, and only while it matters."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from agent.model.errors import UnaskedError
from agent.model.world import World

_SERVES_S = 10.0  # how long an answer does
Holders = Mapping[str, frozenset[str] | None]  # pod → UUIDs of its GPUs; None where they can't be told
Ask = Callable[[], Holders]  # UnaskedError


class PodGpus:
    """It is not asked while we keep off the GPUs: the answer may need NVML, for MIG devices and claims."""

    def __init__(self, ask: Ask | None, tell: Callable[..., None]) -> None:
        """``ask``: the kubelet; None where it is not to be asked."""
        self._ask, self._tell = ask, tell
        self._holders: Holders | None = None
        self._until = 0.0
        self._unasked = ""

    def forget(self) -> None:
        """The next question is asked anew."""
        self._until = 0.0

    def now(self, keep_off: bool) -> Holders | None:
        """None where nobody's GPUs are known: then every GPU pod leaves."""
        at = time.monotonic()
        if self._ask and not keep_off and at >= self._until:
            self._holders, self._until = self._answer(self._ask), at + _SERVES_S
        return self._holders

    def _answer(self, ask: Ask) -> Holders | None:
        try:
            answer, why = ask(), ""
        except UnaskedError as error:
            answer, why = None, str(error)
        if why and why != self._unasked:
            self._tell("which pod holds which GPU is not known; a GPU's remedy moves all GPU pods", why=why)
        self._unasked = why
        return answer


def with_gpus(world: World, holders: Holders | None) -> World:
    """The pods with the GPUs that each holds; one that requests a GPU and for which none is told may hold any."""
    known = holders or {}
    pods = tuple(
        replace(pod, gpus=frozenset(known.get(pod.key) or ()) or None) if pod.gpu else pod for pod in world.pods or ()
    )
    return world if world.pods is None else replace(world, pods=pods)
