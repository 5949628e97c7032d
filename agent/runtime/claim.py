"""Which of several agents on one node acts: the one that began last, which says so with whatever it writes next."""

from __future__ import annotations

from agent.model.cluster_client import ClusterClient
from agent.model.errors import RefusedError, UnreachableError
from agent.model.world import Claim
from agent.remediation.stored import Stored


def claimed(own: Claim | None, life: str, stored: Stored | None, client: ClusterClient, observes: bool) -> Claim | None:
    """This life's claim after a look: a new one at the first, and when the pod of a later life has ended.

    Whoever was there before is overtaken, alive or not: it finds that out before it acts again. But who only
    ``observes`` keeps nobody from acting, and stands back until the other's pod has ended.
    """
    writer = stored.writer if stored else None
    if not life:
        return None
    if own is None and writer and writer.life == life:
        return writer
    if own is None and writer and observes and not (writer.by_hand or _ended(writer, client)):
        return Claim(writer.term - 1, life)
    if own is None:
        return _after(writer, life)
    if writer is None or writer.life == life or writer < own or not _ended(writer, client):
        return own
    return _after(writer, life)


def _after(writer: Claim | None, life: str) -> Claim:
    return Claim(writer.term + 1 if writer else 1, life)


def _ended(writer: Claim, client: ClusterClient) -> bool:
    """Whether its pod is no longer on the node, or has ended there. Of one that was started by hand nobody can tell."""
    if writer.by_hand:
        return False
    try:
        return writer.life not in client.running()
    except (RefusedError, UnreachableError):
        return False
