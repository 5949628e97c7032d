"""What can be typed after ``gpu-health-agent``."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import NoReturn

from agent import __version__

USAGE = 64  # sysexits EX_USAGE


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """argparse's own exit code 2 would read as the verdict 'unhealthy'."""
        self.print_usage(sys.stderr)
        sys.stderr.write(f"{self.prog}: {message}\n")
        sys.exit(USAGE)


def parser() -> argparse.ArgumentParser:
    """Every command and its arguments; ``command`` is its name."""
    whole = _Parser(prog="gpu-health-agent", description="Keeps broken GPUs away from pods, and says why.")
    whole.add_argument("--version", action="version", version=f"gpu-health-agent {__version__}")
    commands = whole.add_subparsers(required=True, dest="command", metavar="COMMAND", parser_class=_Parser)

    run = commands.add_parser("run", help="watch this node's GPUs and act on its Node object")
    _common(run)
    run.add_argument("--simulate", metavar="SCENARIO", nargs="?", const="idle", help="simulated GPUs instead of NVML")
    run.add_argument("--sources", type=Path, metavar="S", help="the socket of 'sources' in another container")
    run.add_argument("--record", type=Path, metavar="F", help="write down what is seen and decided, for replay")
    run.add_argument("--dry-run", action="store_true", help="look and plan, write nothing at all")

    sources = commands.add_parser("sources", help="only the sources, for an agent without the host's privileges")
    sources.add_argument("--config", metavar="F", help="the agent's own file")
    sources.add_argument("--socket", type=Path, required=True, metavar="S", help="where the agent finds them")
    sources.add_argument("--simulate", metavar="SCENARIO", nargs="?", const="idle", help="simulated GPUs")
    _directory(sources)

    check = commands.add_parser("check", help="this node's verdict: exit 0 healthy, 1 degraded, 2 unhealthy, 3 unknown")
    check.add_argument("--config", metavar="F")
    check.add_argument("--json", action="store_true", help="the whole state, as /state has it")

    explain = commands.add_parser("explain", help="each fault: evidence, what would clear it, what happens next")
    explain.add_argument("fault", nargs="?", metavar="FAULT", help="one fault's id (default: all that stand)")
    explain.add_argument("--config", metavar="F")
    explain.add_argument("--node", metavar="N", help="from this Node's annotation, instead of the agent that runs here")
    explain.add_argument("--recording", type=Path, metavar="F", help="as a recording of 'run --record' ends")
    explain.add_argument("--kubeconfig", metavar="F", help="credentials for --node")
    explain.add_argument("--json", action="store_true")

    policy = commands.add_parser("policy", help="the rules in force: the defaults with the configuration's overrides")
    policy.add_argument("--config", metavar="F", help="validated without a cluster or a GPU")
    policy.add_argument("--gpu-model", default="", metavar="X", help="NVML's product name, for overrides by model")
    policy.add_argument("--node-label", default=[], action="append", metavar="K=V", help="for overrides by node label")
    form = policy.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true")
    form.add_argument("--markdown", action="store_true", help="the table of the README")

    replay = commands.add_parser("replay", help="what was decided, or would be, from a recording or a kernel log")
    replay.add_argument("file", metavar="FILE", help="a recording, a source's lines or a raw kernel log; - for stdin")
    replay.add_argument("--config", metavar="OTHER", help="another policy than the recording's own")
    replay.add_argument("--profile", default="h100-8", metavar="P", help="the healthy GPUs beside a raw kernel log")
    replay.add_argument("--json", action="store_true", help="one JSON object a line and change, the only form there is")

    simulate = commands.add_parser("simulate", help="the main job on simulated GPUs, told live on the terminal")
    simulate.add_argument("scenario", nargs="?", default="demo", help="a scenario's name or file (demo)")
    simulate.add_argument("--json", action="store_true", help="one JSON object a line")
    simulate.add_argument("--kubeconfig", metavar="F", help="a real cluster instead of the embedded one; needs --node")
    simulate.add_argument("--node", metavar="N", help="the Node object that the simulation writes to")
    _directory(simulate)

    inject = commands.add_parser("inject", help="change a running simulation")
    inject.add_argument("--gpu", type=_gpu, metavar="G", help="the GPU's index or UUID (with --clear: default all)")
    inject.add_argument("--pid", type=int, metavar="PID", help="with --xid: the process that the kernel names")
    what = inject.add_mutually_exclusive_group(required=True)
    what.add_argument("--xid", type=int, metavar="CODE")
    what.add_argument("--temperature", type=float, metavar="C", help="°C")
    what.add_argument("--ecc-uncorrected", type=int, metavar="N", help="new uncorrectable memory errors")
    what.add_argument("--lost", action="store_true", help="the GPU falls off the bus")
    what.add_argument("--recovery-action", type=int, metavar="A", help="NVML field 230: 1 reset, 2 reboot …")
    what.add_argument("--set", metavar="SIGNAL=N", help="another reading, as remapped_rows_pending=1")
    what.add_argument("--hang", metavar="CALL", help="this call about the GPU does not return, as nvmlDeviceGetEccMode")
    what.add_argument("--process", type=int, metavar="PID", help="this process computes on the GPU")
    what.add_argument("--kernel", metavar="TEXT", help="user space writes this line into the kernel log")
    what.add_argument("--clear", action="store_true", help="the proved remedy: new counters, and a boot if need be")
    _directory(inject)
    diagnose = commands.add_parser("diagnose", help="DCGM's active diagnosis: exit 0 passed, 1 failed, 75 not run")
    diagnose.add_argument("--level", type=int, choices=(1, 2, 3, 4), required=True,
                          help="1 takes seconds and disturbs nobody; 2 minutes, 3 longer, 4 an hour")  # fmt: skip
    diagnose.add_argument("--gpu", action="append", default=[], metavar="G", help="PCI address, UUID or index")
    diagnose.add_argument("--force", action="store_true", help="though the GPU is in use or the node in service")
    diagnose.add_argument(
        "--sources", type=Path, metavar="S", help="in the container with this socket, not in this one"
    )
    diagnose.add_argument("--config", metavar="F")
    diagnose.add_argument("--node", metavar="N", help="see by this Node whether it is withdrawn, where no agent runs")
    diagnose.add_argument("--kubeconfig", metavar="F", help="credentials for --node")
    release = commands.add_parser("release", help="take everything of ours off one node or all of them")
    whose = release.add_mutually_exclusive_group(required=True)
    whose.add_argument("--node", metavar="N")
    whose.add_argument("--all", action="store_true", help="every node, and the permits")
    release.add_argument("--config", metavar="F", help="for budget.namespace")
    release.add_argument("--kubeconfig", metavar="F", help="credentials (default: the pod's service account)")

    drill = commands.add_parser("drill", help="rehearse on a cluster: a deleted pod, a withdrawn node, a crash")
    drill.add_argument("--kubeconfig", metavar="F", required=True, help="the cluster; there is no default")
    drill.add_argument("--yes", action="store_true", help="without it nothing is done but to say what would be")
    drill.add_argument("--namespace", default="gpu-health-drill", metavar="S", help="made for it; a kit there is used")
    drill.add_argument("--node", metavar="N", help="the node to withdraw (default: the one with the training)")
    drill.add_argument("--image", metavar="I", help="Python 3.11 and the kit's requirements.txt")
    drill.add_argument("--kit", type=Path, metavar="D", help="the folder daemonset/kit (default: of this checkout)")
    where = drill.add_mutually_exclusive_group()
    where.add_argument("--storage-class", metavar="C", help="for checkpoints, ReadWriteMany (default: the cluster's)")
    where.add_argument("--shared-path", metavar="P", help="a folder that is the same on every node, instead")
    drill.add_argument("--inject", action="store_true", help="the fault by the simulation of the agent's GPUs")
    drill.add_argument("--rate", type=_positive, default=20.0, metavar="R", help="requests a second (20)")
    drill.add_argument("--interval-s", type=_positive, default=20.0, metavar="S", help="between checkpoints (20)")
    drill.add_argument("--step-s", type=_positive, default=0.5, metavar="S", help="of the training (0.5)")
    drill.add_argument("--agent-namespace", default="gpu-health-agent", metavar="S")
    drill.add_argument("--json", type=Path, metavar="F", help="write the report as JSON")
    drill.add_argument("--html", type=Path, metavar="F", help="and as a page")
    drill.add_argument("--keep", action="store_true", help="leave the kit in its namespace, until the next drill")
    return whole


def _gpu(text: str) -> int | str:
    return text if text.startswith("GPU-") else int(text)


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < 1e6:
        raise ValueError(text)
    return number


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="F", help="the YAML configuration (default: all defaults, mode observe)")
    parser.add_argument("--node", metavar="N", help="the Node object to write to (default: NODE_NAME)")
    parser.add_argument("--kubeconfig", metavar="F", help="credentials (default: the pod's service account)")
    _directory(parser)


def simulation_directory() -> Path:
    """Where simulated GPUs are found by default."""
    runtime = os.environ.get("XDG_RUNTIME_DIR") or "/tmp"  # noqa: S108 - the folder in it is made private
    return Path(runtime) / f"gpu-health-agent-{os.getuid()}"


def _directory(parser: argparse.ArgumentParser) -> None:
    default = simulation_directory()
    parser.add_argument("--simulation-dir", type=Path, default=default, metavar="D", help=argparse.SUPPRESS)
