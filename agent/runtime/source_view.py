"""The sources' part of a snapshot."""

from __future__ import annotations

from agent.diagnosis.history import History
from agent.model.fault import Verdict
from agent.sources.process.source import SourceStatus
from agent.status.snapshot import SourceView


def source_view(status: SourceStatus, verdict: Verdict, history: History, now: float) -> SourceView:
    """``now`` is monotonic seconds."""
    failed, alive = history.failed.get(status.name), history.alive.get(status.name)
    reason = verdict.blind.get(status.name)
    blind = reason.sentence(status.name) if reason else failed.raw if failed else ""
    return SourceView(
        name=status.name,
        up=status.running and status.last_seen is not None and not blind,
        age_s=None if status.last_seen is None else now - status.last_seen,
        starts=status.starts,
        garbage=status.garbage,
        pid=status.pid,
        trouble=(failed.raw if failed else "") or status.trouble or blind,  # its own words before its library's
        poll_s=history.poll_s(status.name),
        version=str(alive.values.get("dcgm_version", "")) if alive else "",
    )
