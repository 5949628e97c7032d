"""Which pod holds which GPU, as the kubelet last told: asked seldom, and only while it matters."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from agent.model.devices import Device
from agent.model.errors import UnaskedError
from agent.model.fault import Card
from agent.model.ownership import GPU_DRIVER
from agent.model.world import Clients, Pod, World

_SERVES_S, _LONGEST_S = 10.0, 60.0  # how long an answer serves: twice as long as the last one, if it is the same
Holders = Mapping[str, frozenset[str] | None]  # pod → UUIDs of its GPUs; None where they can't be told
Ask = Callable[[], Holders]  # UnaskedError
Runs = Mapping[str, str]  # pod → how it is, in words
_MOST = 8  # pods that are named


class PodGpus:
    """It is not asked while we keep off the GPUs: the answer may need NVML, for MIG devices and claims."""

    def __init__(
        self,
        ask: Ask | None,
        tell: Callable[..., None],
        clock: Callable[[], float] = time.monotonic,
        how: Callable[[], Runs] | None = None,
    ) -> None:
        """``ask``: the kubelet, and ``how`` its pods are (UnaskedError); None where it is not to be asked."""
        self._ask, self._tell, self._clock, self._how = ask, tell, clock, how
        self._runs: Runs = {}
        self._runs_until = 0.0
        self._holders: Holders | None = None
        self._until, self._serves_s = 0.0, _SERVES_S
        self._unasked = ""

    def forget(self) -> None:
        """The next question is asked anew."""
        self._until, self._serves_s = 0.0, _SERVES_S

    def now(self, keep_off: bool) -> Holders | None:
        """None where nobody's GPUs are known: then every GPU pod leaves."""
        if self._ask and not keep_off and self._clock() >= self._until:
            last, self._holders = self._holders, self._answer(self._ask)
            self._serves_s = min(_LONGEST_S, 2 * self._serves_s) if self._holders == last else _SERVES_S
            self._until = self._clock() + self._serves_s  # a kubelet that hangs takes ten seconds to say nothing
        return self._holders

    def on(self, gpus: frozenset[str], keep_off: bool) -> tuple[str, ...]:
        """The pods on these GPUs in words, as the kubelet alone tells while the API server does not answer."""
        held = self.now(keep_off) if gpus else None
        found = sorted(pod for pod, uuids in (held or {}).items() if uuids is None or uuids & gpus)
        if found and self._how and self._clock() >= self._runs_until:
            try:
                self._runs = self._how()
            except UnaskedError:
                self._runs = {}  # served from Kubernetes 1.37 on, and where it is named
            self._runs_until = self._clock() + _LONGEST_S
        return tuple(f"{pod} ({self._runs[pod]})" if pod in self._runs else pod for pod in found[:_MOST])

    def _answer(self, ask: Ask) -> Holders | None:
        try:
            answer, why = ask(), ""
        except UnaskedError as error:
            answer, why = None, str(error)
        if why and why != self._unasked:
            self._tell("which pod holds which GPU is not known; a GPU's remedy moves all GPU pods", why=why)
        self._unasked = why
        return answer


def with_gpus(world: World, holders: Holders | None, clients: Clients, cards: Mapping[str, Card]) -> World:
    """The pods with the GPUs that each holds: by the kubelet, by its ResourceClaims, by others' annotations, by a
    process that NVML names.

    One that requests a GPU and of which nobody tells which may hold any.
    """
    known, behind = holders or {}, {one.device: one.gpu(cards) for one in world.devices}
    pods = tuple(_with_gpus(pod, known, clients, behind) for pod in world.pods or ())
    return world if world.pods is None else replace(world, pods=pods)


def _claimed(pod: Pod, behind: Mapping[Device, str]) -> frozenset[str] | None:
    """The GPUs behind the devices of its claims. None: not known."""
    if pod.devices is None or any(one.driver == GPU_DRIVER and not behind.get(one) for one in pod.devices):
        return None
    return frozenset(filter(None, (behind.get(device) for device in pod.devices)))


def _with_gpus(pod: Pod, known: Holders, clients: Clients, behind: Mapping[Device, str]) -> Pod:
    claimed = _claimed(pod, behind)
    listed = known.get(pod.key, ())
    if not listed and claimed is not None:
        listed = claimed
    if listed is None or pod.claims is None or (pod.gpu and not listed and claimed is None):
        return replace(pod, gpu=True, gpus=None)
    running = {gpu for gpu, pids in clients.items() if pod.uid in pids.values()}
    gpus = frozenset(listed) | pod.claims | running
    return replace(pod, gpu=True, gpus=gpus) if gpus else replace(pod, gpus=None if claimed is None else gpus)
