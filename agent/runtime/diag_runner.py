"""A client that also has this node's GPUs diagnosed: one diagnosis at a time, in a thread of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from http import HTTPStatus
from typing import Any

from agent.model.cluster_client import Annotations, ClusterClient, Labels
from agent.model.errors import AgentError, RefusedError, UndiagnosedError
from agent.model.steps import Diagnose, Step, Wait
from agent.model.world import Diagnosed, World
from agent.remediation.stored import kept
from agent.remediation.validation import awaited
from agent.sources.dcgm.diag_process import Progress, failures

Ask = Callable[[int, Sequence[str], Progress], dict[str, Any]]


class DiagRunner:
    """What the client of the cluster does, and the step Diagnose."""

    def __init__(self, client: ClusterClient, ask: Ask) -> None:
        """``ask`` blocks until the result; UndiagnosedError."""
        self._client, self._ask = client, ask
        self._run: _Run | None = None

    @property
    def requests(self) -> Mapping[str, int]:
        return self._client.requests

    @property
    def asked_at(self) -> float:
        return self._client.asked_at

    @property
    def checkpoints(self) -> tuple[Mapping[str, int], float]:
        return self._client.checkpoints

    def words(self) -> Iterator[tuple[Labels, Annotations]]:
        return self._client.words()

    def workloads(self) -> Mapping[str, str]:
        return self._client.workloads()

    def running(self) -> frozenset[str]:
        return self._client.running()

    def succeeds(self) -> None:
        self._client.succeeds()

    def renew(self) -> None:
        self._client.renew()

    def lacks(self, go_on: Callable[[], bool]) -> tuple[Wait, ...] | None:
        return self._client.lacks(go_on)

    def look(self, closely: bool, counts: bool = True) -> World:
        """A diagnosis that the Node no longer waits for is ended: a fault stands again, or a person decided."""
        world = self._client.look(closely, counts)
        if self._run is None:
            return world
        self._run.wanted = self._run.step.name == awaited(kept(world.stored))
        return replace(world, diagnosed=self._run.diagnosed())

    def do(self, step: Step) -> bool:
        if not isinstance(step, Diagnose):
            return self._client.do(step)
        if self._run and self._run.end is None:
            # As a server's refusal that the next round may find gone.
            raise RefusedError(HTTPStatus.NOT_FOUND, "the diagnosis before it has not ended yet")
        try:
            self._run = _Run(step, self._ask)
        except RuntimeError as error:  # the machine has no more threads, and may have one later
            raise RefusedError(HTTPStatus.NOT_FOUND, f"there is no thread for it ({error})") from error
        return True


class _UnwantedError(AgentError):
    """Nobody waits for it any more."""


class _Run:
    """One diagnosis, from its begin on."""

    def __init__(self, step: Diagnose, ask: Ask) -> None:
        self.step, self._ask = step, ask
        self.wanted = True
        self.end: tuple[str, str, float] | None = None  # state, what is said, monotonic seconds
        threading.Thread(target=self._go, name="diagnosis", daemon=True).start()

    def diagnosed(self) -> Diagnosed:
        if self.end is None:
            return Diagnosed(self.step.name, "active")
        state, said, at = self.end
        return Diagnosed(self.step.name, state, said, int(time.monotonic() - at))

    def _go(self) -> None:
        try:
            result = self._ask(self.step.level, self.step.uuids, self._progress)
            end = ("passed", "") if result["passed"] is True else ("failed", failures(result))
        except UndiagnosedError as error:
            end = "undone", str(error)
        except _UnwantedError:
            end = "undone", "nobody waits for it any more"
        except Exception as error:  # noqa: BLE001 - a bug must not leave it "active" for ever
            end = "undone", f"unexpected {type(error).__name__}; please report it"
        self.end = (*end, time.monotonic())

    def _progress(self, _: float) -> None:
        if not self.wanted:
            raise _UnwantedError
