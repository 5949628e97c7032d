"""Every source of this node as a process of its own: which may run now, and what they say."""

from __future__ import annotations

import selectors
import time
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from agent.config.source_index import KERNEL_LOG, SOURCES, Known, hold_gpus
from agent.model.observation import Observation
from agent.sources.dcgm.diag_process import Diagnosing, Progress
from agent.sources.kubelet.pod_resources import Holders, PodResources
from agent.sources.kubelet.pods_api import PodsApi, Runs
from agent.sources.process.source import Source, SourceStatus

_MOST_GPUS = 256  # that a node may have had: they are named on a source's command line


class Sources(Protocol):
    """What the judge sees the node through: processes of its own, or those of another container."""

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def statuses(self) -> tuple[SourceStatus, ...]: ...

    def want(self, names: Set[str], known: Known) -> None:
        """These may run and no others; those that begin now go on from what is known."""

    def ended(self, names: Iterable[str]) -> bool:
        """Whether no process of these is left, not even one that is stuck in the kernel."""

    def turn(self, wait_s: float) -> list[Observation]:
        """What they said, or nothing after so long."""

    def who_holds(self) -> Holders:
        """Which pod holds which GPU; UnaskedError. Called by another thread."""

    def who_runs(self) -> Runs:
        """Which pods are there, and how; UnaskedError. Called by another thread."""

    def diagnose(self, level: int, uuids: Sequence[str], progress: Progress) -> dict[str, Any]:
        """DCGM's diagnosis of these GPUs; UndiagnosedError. Called by another thread, which waits for the result."""

    def close(self) -> None:
        """End them all."""


class Supervisor:
    """Sources as processes of our own."""

    def __init__(
        self,
        commands: Mapping[str, Sequence[str]],
        hung_s: float,
        pods: Sequence[str],
        diagnosis: Sequence[str],
        runs: Sequence[str] = (),
    ) -> None:
        """All but ``hung_s`` are command lines; two ask the kubelet: ``pods`` which one holds which GPU, ``runs`` how
        each is."""
        self._commands, self._pods, self._runs = commands, PodResources(pods), PodsApi(runs)
        self._diagnosing = Diagnosing(diagnosis)
        self._diagnosing.may = False  # until the GPUs are wanted
        self._known = Known()
        self._sources = {
            name: Source(name, partial(self._command, name), max(hung_s, SOURCES[name].least_hung_s))
            for name in commands
        }
        self._wanted: Set[str] = frozenset()
        self._registered: dict[str, tuple[int, int]] = {}
        self.selector = selectors.DefaultSelector()  # others may wait here too, by a callable that is called when due

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._sources)

    @property
    def statuses(self) -> tuple[SourceStatus, ...]:
        """A diagnosis holds GPUs as well: what may hold one has not ended before that has."""
        over, holders = self._diagnosing.ended, hold_gpus(self._sources)
        every = (source.status for source in self._sources.values())
        return tuple(replace(one, ended=one.ended and (over or one.name not in holders)) for one in every)

    def want(self, names: Set[str], known: Known) -> None:
        begin = names - self._wanted
        gpus = self._known.gpus | known.gpus
        gpus = gpus if len(gpus) <= _MOST_GPUS else known.gpus
        self._known = replace(known if KERNEL_LOG in begin else self._known, gpus=gpus)
        self._wanted = names
        self._diagnosing.may = names >= hold_gpus(self._sources)
        for name in self._sources.keys() - names:
            self._sources[name].close()

    def ended(self, names: Iterable[str]) -> bool:
        asked = frozenset(names)
        return all(one.ended for one in self.statuses if one.name in asked)

    def turn(self, wait_s: float) -> list[Observation]:
        now = time.monotonic()
        for name, source in self._sources.items():
            if name in self._wanted:
                source.tick(now)
            self._register(name, source)
        ready = self.selector.select(max(0.0, wait_s))
        return [observation for key, _ in ready for observation in key.data()]

    def who_holds(self) -> Holders:
        return self._pods.who_holds()

    def who_runs(self) -> Runs:
        return self._runs.who_runs()

    def diagnose(self, level: int, uuids: Sequence[str], progress: Progress) -> dict[str, Any]:
        return self._diagnosing.run(level, uuids, progress)

    def close(self) -> None:
        self._diagnosing.close()
        for source in self._sources.values():
            source.close()

    def _command(self, name: str, left_out: Collection[str]) -> Sequence[str]:
        """Asked anew at each start, so that it goes on from there."""
        return [*self._commands[name], *SOURCES[name].past(replace(self._known, left_out=tuple(left_out)))]

    def _read(self, source: Source) -> Iterable[Observation]:
        for observation in source.read(time.monotonic()):
            self._known = self._known.after(observation)
            yield observation

    def _register(self, name: str, source: Source) -> None:
        fd, old = source.fileno(), self._registered.pop(name, None)
        new = None if fd is None else (fd, source.status.starts)  # a new process may get the old one's number
        if new != old:
            if old is not None:
                self.selector.unregister(old[0])
            if new is not None:
                self.selector.register(new[0], selectors.EVENT_READ, partial(self._read, source))
        if new is not None:
            self._registered[name] = new
