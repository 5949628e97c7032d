"""Application errors told apart: a program that fails wherever it runs, and a GPU on which every program fails."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from agent.config.limits import Limits
from agent.diagnosis.history import Blame, History
from agent.diagnosis.row import TABLE
from agent.model.fault import Finding

SUSPECT = TABLE["app-errors"]
PROGRAM = TABLE["workload-errors"]
_SEVERAL_GPUS = 2
_STRAY = 45  # channels that are removed because something else ended: nobody's fault, however many there are


def find(history: History, limits: Limits) -> Iterator[Finding]:
    """Only with news; pods are counted by namespace and controller, for a crash-looping Job makes new ones."""
    fresh = {(o.pci, o.value): o for o in history.fresh if o.value != _STRAY}
    for (pci, code), observation in fresh.items():
        alike = [b for b in history.blames if b.code == code and history.now - b.arrived <= limits.app_window_s]
        if not any(b.pci == pci for b in alike):
            continue
        here = {w for b in alike if b.pci == pci and (w := workload(b, history))}
        elsewhere = {w for b in alike if b.pci != pci and (w := workload(b, history))}
        only = here - elsewhere
        place, there = _at_one_place(history, alike, pci, only)
        if len(only) >= limits.app_workloads or there >= limits.app_workloads_in_place:
            where = f", in {there} of them always at {place}" if there > 1 else ""
            yield SUSPECT.found(
                observation, limits, f"Xid {code} in {len(only)} workloads on this GPU and no other{where}"
            )
        for one in sorted(here):
            gpus = {b.pci for b in alike if workload(b, history) == one}
            if len(gpus) >= _SEVERAL_GPUS:
                message = f"{one}: Xid {code} on {len(gpus)} GPUs: it is the program"
                pod = next(b.pod for b in reversed(alike) if workload(b, history) == one)
                yield replace(PROGRAM.found(observation, limits, message, pci=""), pod=pod)


def _at_one_place(history: History, alike: list[Blame], pci: str, workloads: set[str]) -> tuple[str, int]:
    """The unit of the GPU at which most of the workloads failed, and how many of them failed at no other.

    A program that is wrong fails wherever it runs; a unit that is broken fails all who run there.
    """
    places = {w: {b.place for b in alike if b.pci == pci and workload(b, history) == w} for w in workloads}
    always = Counter(place for one in places.values() if len(one) == 1 for place in one if place)
    return max(always.items(), key=lambda item: item[1], default=("", 0))


def workload(blame: Blame, history: History) -> str:
    """``namespace/Kind/name``; empty where the process, its pod or the pod's owner is not known."""
    return history.workloads.get(blame.pod, "")
