"""``run``: the agent of this node."""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from functools import partial
from pathlib import Path

from agent import __version__
from agent.commands.setup import add_directory, add_logging, client, configured, simulated, stop_on_signals
from agent.model.errors import ConfigError
from agent.model.world import BY_HAND
from agent.recording.flight import FlightRecorder
from agent.recording.recording import Recorder, recorder
from agent.runtime import log
from agent.runtime.actor import Actor
from agent.runtime.daemon import Daemon, serve
from agent.runtime.diag_runner import DiagRunner
from agent.sources.process.command_lines import names, supervisor
from agent.sources.process.remote import Remote
from agent.sources.process.supervisor import Sources

_SWITCH_S = 0.0005


EXAMPLES = (
    ("gpu-health-agent run --node node-1 --dry-run", "what it would do: nothing is written"),
    ("gpu-health-agent run --node node-1 --config config.yaml --record run.jsonl", "for 'replay' and 'explain'"),
    ("gpu-health-agent run --node node-1 --simulate demo", "on simulated GPUs, and on a real Node object"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="F", help="the YAML configuration (default: all defaults, mode observe)")
    parser.add_argument("--node", metavar="N", help="the Node object to write to (default: NODE_NAME)")
    parser.add_argument("--kubeconfig", metavar="F", help="credentials (default: the pod's service account)")
    add_directory(parser)
    parser.add_argument(
        "--simulate", metavar="SCENARIO", nargs="?", const="idle", help="simulated GPUs instead of NVML"
    )
    parser.add_argument("--sources", type=Path, metavar="S", help="the socket of 'sources' in another container")
    parser.add_argument("--record", type=Path, metavar="F", help="write down what is seen and decided, for replay")
    parser.add_argument("--dry-run", action="store_true", help="look and plan, write nothing at all")
    add_logging(parser)


def run(arguments: argparse.Namespace) -> int:
    config = configured(arguments.config)
    node = arguments.node or config.node or os.environ.get("NODE_NAME")
    if not node:
        raise ConfigError("node: not named; set it in the file, with --node, or in the environment's NODE_NAME")
    directory = None
    if not arguments.sources:
        config, directory = simulated(arguments, config)
    log.configure(node, arguments.log_level, arguments.log_format)
    there = arguments.sources
    sources: Sources = Remote(there, names(config)) if there else supervisor(config, directory)
    connect = partial(client, arguments.kubeconfig, node, config)
    able = (lambda: DiagRunner(connect(), sources.diagnose)) if config.diagnoses else connect
    record: Recorder | None = None
    if arguments.record:
        record = recorder(arguments.record, config, node, sources.names)
    elif config.evidence.folder.is_dir():
        record = flight = FlightRecorder(config.evidence.folder, config, node, sources.names)
        flight.answer()
    ask = sources.who_holds if config.sources.pods.enabled else None
    how = sources.who_runs if ask and config.sources.pods.pods_api else None
    life = os.environ.get("POD_UID") or f"{BY_HAND}{secrets.token_hex(8)}"
    actor = Actor(config, able, arguments.dry_run, log.tell, ask, record, life, how)
    daemon = Daemon(config, node, actor, log.tell, sources, record)
    server = serve(config, daemon)
    log.tell("started", version=__version__, mode=str(config.mode), port=server.port, dry_run=arguments.dry_run)
    # The act thread must not wait Python's default 5 ms for the judge to let go of the interpreter.
    sys.setswitchinterval(_SWITCH_S)
    daemon.run(stop_on_signals())
    server.shutdown()
    return 0
