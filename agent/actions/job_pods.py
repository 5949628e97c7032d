"""What the pods of repairs' Jobs say: how each one's container ended, or what keeps it from beginning."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from agent.model.text import printable, unix_s

_LONGEST = 200
_UNREADABLE = (KeyError, TypeError, ValueError, AttributeError, OverflowError)


@dataclass(frozen=True, slots=True)
class JobPod:
    """One as it was last listed."""

    exit_code: int | None = None  # of its container
    ended_at: float = 0.0  # Unix seconds by the node's own clock; 0: not known
    unbegun: str = ""  # why none of its containers has run; empty once one has
    stuck: bool = False  # it should have ended and did not
    over: bool = False  # nothing of it runs any more, nor will


def job_pods(pods: Iterable[Mapping[str, Any]], stuck: Collection[str] = ()) -> dict[str, JobPod]:
    """By the name of their Job; ``stuck``: the UIDs of those that should have ended."""
    name = "batch.kubernetes.io/job-name"
    return {(raw["metadata"].get("labels") or {}).get(name, ""): _read(raw, stuck) for raw in pods}


def _read(raw: Mapping[str, Any], stuck: Collection[str]) -> JobPod:
    status = raw.get("status") or {}
    code, at, unbegun = None, 0.0, ""
    for container in status.get("containerStatuses") or ():
        with suppress(*_UNREADABLE):  # then its Job alone says how it ended
            if ended := (container.get("state") or {}).get("terminated"):
                code, at = int(ended.get("exitCode") or 0), unix_s(ended.get("finishedAt")) or 0.0
    with suppress(*_UNREADABLE):  # in doubt it began
        unbegun = _unbegun(status)
    over = status.get("phase") in ("Succeeded", "Failed")
    return JobPod(code, at, unbegun, raw["metadata"].get("uid") in stuck, over)


def _unbegun(status: Mapping[str, Any]) -> str:
    states = [*_states(status)]
    if status.get("phase") in ("Running", "Succeeded") or any("running" in s or "terminated" in s for s in states):
        return ""
    if status.get("phase") == "Failed":  # its kubelet refused it
        said = (str(status[key]) for key in ("reason", "message") if status.get(key))
        return printable(": ".join(said) or "its kubelet refused its pod")[:_LONGEST]
    reasons = (str((state.get("waiting") or {}).get("reason") or "") for state in states)
    if why := next(filter(None, reasons), ""):
        return printable(f"its pod waits: {why}")[:_LONGEST]
    return "its kubelet has not taken up its pod"


def _states(status: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Of its containers and init containers, each with the state before this one."""
    for key in ("containerStatuses", "initContainerStatuses"):
        for container in status.get(key) or ():
            yield container.get("state") or {}
            yield container.get("lastState") or {}
