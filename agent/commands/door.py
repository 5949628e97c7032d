"""``door``: tells whoever may join on this node whether it is fit, over a unix socket."""

from __future__ import annotations

import argparse
import signal
from functools import partial
from pathlib import Path

from agent.commands.setup import configured
from agent.model.errors import ConfigError
from agent.status.client import running
from agent.status.fitness import Door

EXAMPLES = (
    (
        "gpu-health-agent door --socket /run/gpu-health-agent/check.sock",
        "'check --socket' and the same path asks there",
    ),
    (
        "gpu-health-agent door --socket /tmp/check.sock --nvhcd /tmp/nvhcd.sock",
        "ft_launcher too: --ft-node-health-check-endpoint unix:///tmp/nvhcd.sock",
    ),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="F", help="that of the agent (default: all defaults)")
    parser.add_argument("--socket", type=Path, required=True, metavar="S", help="where to answer")
    parser.add_argument("--nvhcd", type=Path, metavar="S", help="where to answer NVIDIA's ft_launcher, by gRPC")


def run(arguments: argparse.Namespace) -> int:
    try:
        door = Door(arguments.socket, partial(running, configured(arguments.config)))
        served = None
        if arguments.nvhcd:
            from agent.status.nvhcd import serve  # gRPC is 20 MB

            served = serve(arguments.nvhcd, door.now)
    except (OSError, RuntimeError) as error:
        raise ConfigError(
            f"--socket, --nvhcd: can't listen there ({error}): name a folder that may be written"
        ) from error
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: door.stop())
    door.run()
    if served:
        served.stop(None)
    return 0
