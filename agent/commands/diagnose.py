"""``diagnose``: DCGM's active diagnosis of this node's GPUs, if they are idle and nobody can be disturbed."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agent.commands.check import check
from agent.commands.setup import client, configured, persons
from agent.config.settings import Config
from agent.model.errors import UndiagnosedError, UsageError
from agent.model.names import HARD_TAINT
from agent.model.world import World
from agent.sources.dcgm.diag_process import Diagnosing, Progress
from agent.sources.process.command_lines import diagnosis
from agent.sources.process.remote import Remote

USUALLY = {1: "seconds", 2: "about 2 minutes", 3: "tens of minutes", 4: "an hour or more"}
_CORDON = "node.kubernetes.io/unschedulable"


EXAMPLES = (
    ("gpu-health-agent diagnose --level 1", "all GPUs, in seconds, beside whatever runs"),
    ("gpu-health-agent diagnose --level 3 --gpu 3", "one idle GPU of a withdrawn node"),
    ("gpu-health-agent diagnose --level 1 --sources /run/gpu-health-agent/sources", "in the container 'agent'"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--level",
        type=int,
        choices=(1, 2, 3, 4),
        required=True,
        help="1 takes seconds and disturbs nobody; 2 minutes, 3 longer, 4 an hour",
    )
    parser.add_argument("--gpu", action="append", default=[], metavar="G", help="PCI address, UUID or index")
    parser.add_argument("--force", action="store_true", help="though the GPU is in use or the node in service")
    parser.add_argument("--sources", type=Path, metavar="S", help="in the container with this socket, not in this one")
    parser.add_argument("--config", metavar="F", help="that of the agent (default: all defaults)")
    parser.add_argument("--node", metavar="N", help="see by this Node whether it is withdrawn, where no agent runs")
    parser.add_argument("--kubeconfig", metavar="F", help="credentials for --node")


def run(arguments: argparse.Namespace) -> int:
    config = configured(arguments.config)
    state = check(config)
    gpus = chosen(state, arguments.gpu)
    out = bool(state.get("withdrawn"))
    if arguments.node and arguments.level > 1:
        out = withdrawn(client(persons(arguments.kubeconfig), arguments.node, config).look(closely=False))
    if (why := refusal(state, out, arguments.level, gpus)) and not arguments.force:
        raise RefusedDiagnosisError(why)
    cards, tell = uuids(state, gpus), on_terminal(arguments.level, gpus)
    result = diagnose(config, arguments.sources, arguments.level, cards, tell)
    if not arguments.gpu:
        result = with_missing(result, state)
    sys.stdout.write(json.dumps(result, indent=2) + "\n")
    return 0 if result["passed"] else 1


class RefusedDiagnosisError(UndiagnosedError):
    """It must not run now, and what to do."""


def chosen(state: Mapping[str, Any], names: list[str]) -> list[str]:
    """PCI addresses of the GPUs that are named by address, UUID or index; of all where none is named.

    UsageError, RefusedDiagnosisError.
    """
    gpus: Mapping[str, Mapping[str, Any]] = state["gpus"]
    found = []
    for name in names:
        at = [pci for pci, values in gpus.items() if name in (pci, values.get("uuid"), str(values.get("index")))]
        if not at:
            raise UsageError(
                f"--gpu: {name!r} is none of this node's GPUs: {', '.join(sorted(gpus)) or 'none is read'}"
            )
        found += at
    if not (found or gpus):
        raise RefusedDiagnosisError("no GPU is read on this node")
    return sorted(found or gpus)


def with_missing(result: dict[str, Any], state: Mapping[str, Any]) -> dict[str, Any]:
    """Nothing is passed for a node of which a GPU is not read: it was not tested."""
    named = [one["pci"] for one in (*state.get("faults", ()), *state.get("unseen", {}).values())]
    missing = sorted({*state.get("cards", ()), *filter(None, named)} - state["gpus"].keys())
    untested = [*result.get("untested", ()), *missing]
    return {**result, "untested": untested, "passed": result["passed"] and not missing}


def withdrawn(world: World) -> bool:
    """Nothing new is scheduled there: our hard taint stands, or somebody's cordon."""
    return any(taint.key in (HARD_TAINT, _CORDON) for taint in world.taints)


def refusal(state: Mapping[str, Any], out: bool, level: int, gpus: list[str]) -> str:
    """Why a diagnosis must not run now; empty if it may. Level 1 takes no GPU for itself and disturbs nobody."""
    if keep_off := state.get("aside"):
        return f"the agent keeps off the GPUs ({keep_off}): wait until that is over, or use --force"
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


def uuids(state: Mapping[str, Any], gpus: list[str]) -> list[str]:
    """Of the GPUs at these addresses: a diagnosis is one of cards, not of slots."""
    for pci in gpus:
        if not str(state["gpus"][pci].get("uuid")).startswith("GPU-"):
            raise RefusedDiagnosisError(f"GPU {pci} says no UUID by which DCGM would know it")
    return [str(state["gpus"][pci]["uuid"]) for pci in gpus]


def diagnose(config: Config, there: Path | None, level: int, gpus: list[str], progress: Progress) -> dict[str, Any]:
    """By the container of the sources behind this socket, else here. UndiagnosedError."""
    if there:
        return Remote(there, ()).diagnose(level, gpus, progress)
    return Diagnosing(diagnosis(config)).run(level, gpus, progress)


def on_terminal(level: int, gpus: list[str]) -> Progress:
    """Progress on standard error: a line that grows on a terminal, one every minute elsewhere."""
    terminal, said = sys.stderr.isatty(), [0.0]

    def tell(elapsed_s: float) -> None:
        if terminal or elapsed_s - said[0] >= 60:
            said[0] = elapsed_s
            words = f"level {level} on {len(gpus)} GPUs: {elapsed_s:.0f} s (it usually takes {USUALLY[level]})"
            sys.stderr.write(f"\r{words}" if terminal else f"{words}\n")
            sys.stderr.flush()

    return tell
