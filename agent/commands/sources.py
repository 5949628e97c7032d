"""``sources``: what is seen, for an agent in another container."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from agent.commands.setup import add_directory, add_logging, configured, simulated
from agent.sources.process.command_lines import commands, diagnosis, hung_s, pods, runs

EXAMPLES = (
    ("gpu-health-agent sources --socket /run/gpu-health-agent/sources", "the agent: 'run --sources' and the same path"),
    ("gpu-health-agent sources --socket /tmp/sources --simulate --log-level debug", "on simulated GPUs"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="F", help="the agent's own file")
    parser.add_argument("--socket", type=Path, required=True, metavar="S", help="where the agent finds them")
    parser.add_argument("--simulate", metavar="SCENARIO", nargs="?", const="idle", help="simulated GPUs")
    add_logging(parser)
    add_directory(parser)


def run(arguments: argparse.Namespace) -> int:
    """Becomes a process without this one's libraries: it runs on each node for the sake of nothing but the sources."""
    config, directory = simulated(arguments, configured(arguments.config))
    if directory:
        (directory / "kmsg").touch()
    facts = {
        "socket": arguments.socket,
        "hung-s": hung_s(config),
        "commands": json.dumps(commands(config, directory)),
        "pods": json.dumps(pods(config)),
        "runs": json.dumps(runs(config)),
        "diagnosis": json.dumps(diagnosis(config)),
        "log-level": arguments.log_level,
        "log-format": arguments.log_format or ("console" if sys.stderr.isatty() else "json"),
    }
    options = [text for name, fact in facts.items() for text in (f"--{name}", str(fact))]
    program = [sys.executable, "-m", "agent.sources.process.serving", *options]
    os.execv(sys.executable, program)  # noqa: S606 - this very Python
