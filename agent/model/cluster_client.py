"""What the act loop reaches the cluster through."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

from agent.model.steps import Step
from agent.model.world import World

Labels = Mapping[str, str]
Annotations = Mapping[str, str]


class ClusterClient(Protocol):
    """What touches the cluster. All raise RefusedError or UnreachableError; neither retries."""

    @property
    def requests(self) -> Mapping[str, int]:
        """Requests sent to the API server so far, by HTTP method."""

    @property
    def checkpoints(self) -> tuple[Mapping[str, int], float]:
        """How the evicted pods' checkpoints ended, and the seconds that were waited for them."""

    def look(self, closely: bool) -> World:
        """The world now; ``closely`` also the permits and, once our taint stands, the node's pods."""

    def words(self) -> Iterator[tuple[Labels, Annotations]]:
        """The Node's labels and annotations, now and whenever it changed, until the server ends the watch.

        For a thread of its own.
        """

    def workloads(self) -> Mapping[str, str]:
        """Pod UID → ``namespace/Kind/name`` of what controls it, for the pods of this node."""

    def do(self, step: Step) -> None:
        """One step, one write."""
