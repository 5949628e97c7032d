"""What the act loop reaches the cluster through."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from agent.model.steps import Step, Wait
from agent.model.world import World

Labels = Mapping[str, str]
Annotations = Mapping[str, str]


class ClusterClient(Protocol):
    """What touches the cluster. All raise RefusedError or UnreachableError; neither retries."""

    @property
    def requests(self) -> Mapping[str, int]:
        """Requests sent to the API server so far, by HTTP method."""

    @property
    def asked_at(self) -> float:
        """When the last of them was sent, monotonic seconds; 0 before the first."""

    @property
    def checkpoints(self) -> tuple[Mapping[str, int], float]:
        """How the evicted pods' checkpoints ended, and the seconds that were waited for them."""

    def look(self, closely: bool, counts: bool = True) -> World:
        """The world now; ``closely`` also the permits and, once our taint stands, the node's pods.

        ``counts``: and how large the pool is, for whoever may take a permit.
        """

    def words(self) -> Iterator[tuple[Labels, Annotations]]:
        """The Node's labels and annotations, now and whenever it changed, until the server ends the watch.

        For a thread of its own.
        """

    def workloads(self) -> Mapping[str, str]:
        """Pod UID → ``namespace/Kind/name`` of what controls it, for the pods of this node."""

    def running(self) -> frozenset[str]:
        """The UIDs of the node's pods that have not ended, nor the agent in them, if it is an agent's."""

    def succeeds(self) -> None:
        """What the node holds is another life's from now on: that may have asked for something a moment ago."""

    def renew(self) -> None:
        """The next close look reads the permits and the pool whole, as whoever takes a permit must."""

    def lacks(self, go_on: Callable[[], bool]) -> tuple[Wait, ...] | None:
        """What the mode needs and is refused, or not answered, in words; empty if nothing is, None if not asked yet.

        Nothing is changed by it, and what passed once is not asked for again. ``go_on`` is asked before each request.
        """

    def do(self, step: Step) -> bool:
        """One step, one write. False: it was not done, without trouble: the next plan has it again or says why."""
