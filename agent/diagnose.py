"""``diagnose``: DCGM's active diagnosis of this node's GPUs, if they are idle and nobody can be disturbed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from agent.config import Config
from agent.sources.commands import diagnosis
from agent.world import HARD_TAINT, World

USUALLY = {1: "seconds", 2: "about 2 minutes", 3: "tens of minutes", 4: "an hour or more"}
_TICK_S = 1.0
_CORDON = "node.kubernetes.io/unschedulable"


class RefusedDiagnosisError(Exception):
    """Why it was not run, and what to do: one sentence."""


def chosen(state: Mapping[str, Any], names: list[str]) -> list[str]:
    """PCI addresses of the GPUs that are named by address, UUID or index; of all where none is named."""
    gpus: Mapping[str, Mapping[str, Any]] = state["gpus"]
    found = []
    for name in names:
        at = [pci for pci, values in gpus.items() if name in (pci, values.get("uuid"), str(values.get("index")))]
        if not at:
            raise ValueError(
                f"--gpu: {name!r} is none of this node's GPUs: {', '.join(sorted(gpus)) or 'none is read'}"
            )
        found += at
    if not (found or gpus):
        raise RefusedDiagnosisError("no GPU is read on this node")
    return sorted(found or gpus)


def withdrawn(world: World) -> bool:
    """Nothing new is scheduled there: our hard taint stands, or somebody's cordon."""
    return any(taint.key in (HARD_TAINT, _CORDON) for taint in world.taints)


def refusal(state: Mapping[str, Any], out: bool, level: int, gpus: list[str]) -> str:
    """Why a diagnosis that takes the whole GPU must not run now; empty if it may. Level 1 disturbs nobody."""
    if level < 2:
        return ""
    if not out:
        return "the node is in service: withdraw it first (its taint or a cordon must stand), or use --force"
    for pci in gpus:
        held = state["gpus"][pci].get("processes")
        if held != "":
            who = f"pids {held}" if held else "nobody knows who"
            return f"GPU {pci} is not idle ({who}): level {level} needs it for itself, or use --force"
    return ""


def diagnose(config: Config, level: int, gpus: list[str], progress: Callable[[float], None]) -> dict[str, Any]:
    """Run it; ``progress`` is told the seconds so far, each second."""
    command, began = diagnosis(config, level, gpus), time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            while True:
                try:
                    said, complaint = process.communicate(timeout=_TICK_S)
                    break
                except subprocess.TimeoutExpired:
                    progress(time.monotonic() - began)
        except BaseException:  # Ctrl-C ends both: nobody waits for its answer any more
            process.kill()
            raise
    try:
        told: dict[str, Any] = json.loads(said)
    except ValueError:
        last = (complaint.decode(errors="replace").strip().splitlines() or [""])[-1]
        raise RefusedDiagnosisError(f"the diagnosis ended without a result ({process.returncode}): {last}") from None
    if "error" in told:
        raise RefusedDiagnosisError(str(told["error"]))
    return told


def on_terminal(level: int, gpus: list[str]) -> Callable[[float], None]:
    """Progress on standard error: a line that grows on a terminal, one each minute elsewhere."""
    terminal, said = sys.stderr.isatty(), [0.0]

    def tell(elapsed_s: float) -> None:
        if terminal or elapsed_s - said[0] >= 60:
            said[0] = elapsed_s
            words = f"level {level} on {len(gpus)} GPUs: {elapsed_s:.0f} s (it usually takes {USUALLY[level]})"
            sys.stderr.write(f"\r{words}" if terminal else f"{words}\n")
            sys.stderr.flush()

    return tell
