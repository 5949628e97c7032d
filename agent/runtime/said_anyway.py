"""What is wrong with a node is said on it, though a step that failed has ended the round before its report."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from http import HTTPStatus

from agent.model.cluster_client import ClusterClient
from agent.model.errors import AgentError, CredentialsError, RefusedError, UnreachableError
from agent.model.steps import Report, Step


def said_anyway(
    error: AgentError,
    wrong: Iterable[Step],
    tried: Iterable[Step],
    client: ClusterClient,
    did: Callable[[Step], object],
) -> tuple[Step, ...]:
    """What of it could be said after this ``error``; a report that was ``tried`` is not made twice. Of what fails here
    nobody is told: the step before it is, and the next round says it again."""
    if isinstance(error, RefusedError) and error.status == HTTPStatus.TOO_MANY_REQUESTS:
        return ()  # a whole fleet is asked for less, and not for more
    said, reported = list[Step](), any(isinstance(step, Report) for step in tried)
    for step in wrong:
        if reported and isinstance(step, Report):
            continue
        try:
            accepted = client.do(step)
        except (CredentialsError, RefusedError, UnreachableError):
            break
        if accepted:
            said.append(step)
            did(step)
    return tuple(said)
