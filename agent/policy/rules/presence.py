"""GPUs that are gone: lost by NVML's word, by the kernel's, or missing from the count."""

from __future__ import annotations

from collections.abc import Iterator

from agent.config import Limits
from agent.model import Evidence, Finding, Observation, Remedy, Severity, Signal
from agent.policy.history import History, number


def find(history: History, limits: Limits) -> Iterator[Finding]:
    for pci, seen in history.lost.items():
        yield _lost(pci, seen)
    for seen in history.fresh:
        if seen.signal is Signal.LOST and seen.pci not in history.lost:
            yield _lost(seen.pci, seen)
        elif seen.signal is Signal.RESET_REQUIRED:
            yield Finding(
                "gpu-reset-required", seen.pci, Severity.FATAL, Remedy.RESET_GPU,
                "the GPU answers nothing but that it needs a reset (NVML error 16)",
                Evidence(seen.at, seen.source, seen.raw), seen.seen, seen.source, limits.flag_confirm_s,
            )  # fmt: skip
    alive = history.alive.get("nvml")
    if alive is None or "nvml" in history.failed:
        return
    # Until an address can be told from one that was given to vfio on purpose, a GPU that left the
    # enumeration without a word from NVML or the kernel is reported, not withdrawn for.
    for pci in str(alive.values.get("lost_pcis") or "").split(","):
        if pci:
            yield _missing(pci, alive, "left NVML's enumeration", limits)
    count = number(alive, "gpu_count")
    if limits.expected_gpus is not None and count is not None and count < limits.expected_gpus:
        yield _missing("", alive, f"{count:.0f} GPUs where {limits.expected_gpus} are expected", limits)


def _lost(pci: str, seen: Observation) -> Finding:
    return Finding(
        "gpu-lost", pci, Severity.FATAL, Remedy.REBOOT_NODE, "the GPU no longer answers on the bus",
        Evidence(seen.at, seen.source, seen.raw), seen.seen, seen.source,
    )  # fmt: skip


def _missing(pci: str, seen: Observation, message: str, limits: Limits) -> Finding:
    return Finding(
        "gpu-missing", pci, Severity.DEGRADED, Remedy.REBOOT_NODE, message,
        Evidence(seen.at, seen.source, message), seen.seen, "nvml",
        confirm_s=limits.missing_confirm_s, clear_s=limits.flag_confirm_s,
    )  # fmt: skip
