"""``inject``: changes a running simulation."""

from __future__ import annotations

import argparse
import json
import sys

from agent.commands.setup import add_directory
from agent.model.errors import UsageError

_FIELDS = (
    "gpu",
    "xid",
    "pid",
    "temperature",
    "ecc_uncorrected",
    "lost",
    "recovery_action",
    "hang",
    "process",
    "kernel",
    "clear",
)


EXAMPLES = (
    ("gpu-health-agent inject --gpu 3 --xid 79", "the GPU is lost"),
    ("gpu-health-agent inject --gpu 3 --temperature 95", "it runs hot"),
    ("gpu-health-agent inject --gpu 3 --set pcie_width=8", "its link loses lanes"),
    ("gpu-health-agent inject --gpu 3 --clear", "it is well again"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--gpu", type=_gpu, metavar="G", help="the GPU's index or UUID (with --clear: default all)")
    parser.add_argument("--pid", type=int, metavar="PID", help="with --xid: the process that the kernel names")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--xid", type=int, metavar="CODE", help="the driver reports this Xid")
    what.add_argument("--temperature", type=float, metavar="C", help="°C")
    what.add_argument("--ecc-uncorrected", type=int, metavar="N", help="new uncorrectable memory errors")
    what.add_argument("--lost", action="store_true", help="the GPU falls off the bus")
    what.add_argument("--recovery-action", type=int, metavar="A", help="NVML field 230: 1 reset, 2 reboot …")
    what.add_argument("--set", metavar="SIGNAL=N", help="another reading, as remapped_rows_pending=1")
    what.add_argument("--hang", metavar="CALL", help="this call about the GPU does not return, as nvmlDeviceGetEccMode")
    what.add_argument("--process", type=int, metavar="PID", help="this process computes on the GPU")
    what.add_argument("--kernel", metavar="TEXT", help="user space writes this line into the kernel log")
    what.add_argument("--clear", action="store_true", help="the proved remedy: new counters, and a boot if need be")
    add_directory(parser)


def run(arguments: argparse.Namespace) -> int:
    from agent.simulation.simulated import inject

    request = {key: value for key in _FIELDS if (value := getattr(arguments, key)) is not None and value is not False}
    if arguments.set:
        name, _, number = arguments.set.partition("=")
        request["set"] = {name: int(number) if number.isdecimal() else number}
    if "gpu" not in request and not (arguments.clear or arguments.kernel):
        raise UsageError("--gpu: name the GPU's index")
    reply = inject(arguments.simulation_dir, request)
    sys.stdout.write(json.dumps(reply) + "\n")
    return 0


def _gpu(text: str) -> int | str:
    if text.startswith("GPU-"):
        return text
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no GPU: name its index, as 3, or its UUID, as GPU-5e1f…")
    return int(text)
