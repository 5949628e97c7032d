"""Values that NVML and DCGM read differently."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from agent.config.limits import Limits
from agent.diagnosis.history import History, number
from agent.diagnosis.row import TABLE
from agent.model.fault import Finding

DISAGREES = TABLE["dcgm-disagrees"]
# Quantities that both read and that stand still on a healthy GPU.
_COMPARED = (
    "ecc_mode",
    "ecc_mode_pending",
    "ecc_corrected_volatile",
    "ecc_uncorrected_volatile",
    "ecc_corrected_aggregate",
    "ecc_uncorrected_aggregate",
    "sram_threshold_exceeded",
    "retired_pages_sbe",
    "retired_pages_dbe",
    "retired_pages_pending",
    "remapped_rows_uncorrected",
    "remapped_rows_corrected",
    "remapped_rows_failure",
    "remapped_rows_pending",
    "memory_unrepairable",
    "recovery_action",
    "pcie_replays",
    "pcie_max_width",
    "pcie_width",
)


def find(history: History, limits: Limits) -> Iterator[Finding]:
    differences: dict[str, list[str]] = {}
    for pci, signal, ours, theirs in disagreements(history, limits.silent_s):
        differences.setdefault(pci, []).append(f"{signal}: {theirs:g} by DCGM, {ours:g} by NVML")
    for pci, each in differences.items():
        found = DISAGREES.found(history.witnessed[pci], limits)
        yield replace(found, evidence=replace(found.evidence, raw="; ".join(each)[:500]))


def disagreements(history: History, silent_s: float) -> Iterator[tuple[str, str, float, float]]:
    """GPU, signal, NVML's value and DCGM's, where both are of now, NVML's stands still, and they are not the same."""
    for pci, second in history.witnessed.items() if not history.elsewhere else ():
        first, before = history.readings.get(pci), history.before.get(pci)
        if first is None or pci in history.lost or history.now - min(first.arrived, second.arrived) > silent_s:
            continue
        for signal in _COMPARED:
            ours, theirs = number(first, signal), number(second, signal)
            if None not in (ours, theirs) and ours != theirs and number(before, signal) == ours:
                yield pci, signal, float(ours or 0), float(theirs or 0)
