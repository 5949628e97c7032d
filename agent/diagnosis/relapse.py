"""A GPU that turns fatal again and again: no cure was one, and a person decides."""

from __future__ import annotations

from collections.abc import Mapping

from agent.config.limits import Limits
from agent.diagnosis.row import TABLE
from agent.model.fault import RELAPSING, Evidence, Fault, Finding, Severity

ROW = TABLE[RELAPSING]
Onsets = Mapping[str, tuple[int, ...]]  # when each GPU turned fatal, Unix seconds
Faults = Mapping[str, Fault]


def fault_id(pci: str) -> str:
    return f"{ROW.rule}@{pci or 'node'}"


def counted(onsets: Onsets, old: Faults, new: Faults, wall: float, limits: Limits) -> dict[str, tuple[int, ...]]:
    """One more onset for each GPU that is fatal now and was not before; one less where another proved to be to blame.

    By the wall clock, because the count outlives agent and boot; a clock that jumps only forgets or adds nothing.
    """
    times_by_gpu = dict(onsets)
    for pci in _fatal(new) - _fatal(old):
        recent = tuple(at for at in onsets.get(pci, ()) if abs(wall - at) <= limits.relapse_window_s)
        times_by_gpu[pci] = (*recent, int(wall))[-limits.relapses :]
    for pci in _innocent(old, new):
        times_by_gpu[pci] = times_by_gpu.get(pci, ())[:-1]
    return {pci: times for pci, times in times_by_gpu.items() if times}


def findings(onsets: Onsets, now: float, limits: Limits) -> dict[str, Finding]:
    """What is held for a person; ``now`` is monotonic seconds."""
    held = {}
    for pci, times in onsets.items():
        if len(times) >= limits.relapses and times[-1] - times[0] <= limits.relapse_window_s:
            message = f"{ROW.meaning} ({len(times)} times)"
            evidence = Evidence(float(times[-1]), "agent", message)
            held[fault_id(pci)] = Finding(ROW.rule, pci, ROW.severity, ROW.remedy, message, evidence, now, "")
    return held


def _innocent(old: Faults, new: Faults) -> set[str]:
    """GPUs whose fatal fault turned out to be a neighbour's: nothing else makes a notice of one."""
    was = (new[key].finding for key, fault in old.items() if key in new and fault.finding.severity is Severity.FATAL)
    return (_fatal(old) & {finding.pci for finding in was if finding.severity is Severity.NOTICE}) - _fatal(new)


def _fatal(faults: Faults) -> set[str]:
    confirmed = (f for f in faults.values() if f.confirmed and not f.aside)
    fatal = (f.finding for f in confirmed if f.finding.severity is Severity.FATAL)
    return {finding.pci for finding in fatal if not finding.drill}
