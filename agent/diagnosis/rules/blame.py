"""Application errors told apart: a program that fails wherever it runs, and a GPU on which every program fails."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from agent.config.limits import Limits
from agent.diagnosis.history import Blame, History
from agent.diagnosis.row import TABLE
from agent.model.fault import Finding

SUSPECT = TABLE["app-errors"]
PROGRAM = TABLE["workload-errors"]
_SEVERAL_GPUS = 2


def find(history: History, limits: Limits) -> Iterator[Finding]:
    """Only with news; pods are counted by namespace and controller, for a crash-looping Job makes new ones."""
    fresh = {(o.pci, o.value): o for o in history.fresh}
    for (pci, code), observation in fresh.items():
        alike = [b for b in history.blames if b.code == code and history.now - b.arrived <= limits.app_window_s]
        if not any(b.pci == pci for b in alike):
            continue
        here = {w for b in alike if b.pci == pci and (w := workload(b, history))}
        elsewhere = {w for b in alike if b.pci != pci and (w := workload(b, history))}
        if len(here - elsewhere) >= limits.app_workloads:
            message = f"Xid {code} in {len(here - elsewhere)} workloads on this GPU and no other"
            yield SUSPECT.found(observation, limits, message)
        for one in sorted(here):
            gpus = {b.pci for b in alike if workload(b, history) == one}
            if len(gpus) >= _SEVERAL_GPUS:
                message = f"{one}: Xid {code} on {len(gpus)} GPUs: it is the program"
                pod = next(b.pod for b in reversed(alike) if workload(b, history) == one)
                yield replace(PROGRAM.found(observation, limits, message, pci=""), pod=pod)


def workload(blame: Blame, history: History) -> str:
    """``namespace/Kind/name``; empty where the process, its pod or the pod's owner is not known."""
    return history.workloads.get(blame.pod, "")
