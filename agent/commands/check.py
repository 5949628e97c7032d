"""``check``: one verdict for a person or a script: the running agent's, else one reading of our own."""

from __future__ import annotations

import argparse
import json
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

from agent.commands.setup import configured
from agent.config.settings import Config
from agent.model.observation import Failure, Observation, Signal
from agent.model.text import printable
from agent.runtime.daemon import Daemon
from agent.sources.process.command_lines import names, supervisor
from agent.status.client import running
from agent.status.fitness import asked
from agent.status.state import state

_READ_S = 15.0  # the first poll of eight GPUs without persistence mode takes seconds


_EXIT_CODES = {"healthy": 0, "degraded": 1, "unhealthy": 2}
_UNKNOWN = 3


EXAMPLES = (
    ("gpu-health-agent check", "the agent's that runs here, else by one reading of our own"),
    ("gpu-health-agent check --json", "all that /state has"),
    ("gpu-health-agent check --socket /run/gpu-health-agent/check.sock", "in a job's pod: exit 0 if it may join"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="F", help="that of the agent (default: all defaults)")
    parser.add_argument("--socket", type=Path, metavar="S", help="ask at this node's door: exit 0 if a job may join")
    parser.add_argument("--json", action="store_true", help="the whole state, as /state has it")


def run(arguments: argparse.Namespace) -> int:
    if arguments.socket:
        return _ask(arguments.socket, arguments.json)
    found = check(configured(arguments.config))
    sys.stdout.write(json.dumps(found, indent=2) + "\n" if arguments.json else in_words(found))
    return _EXIT_CODES.get(str(found["status"]), _UNKNOWN)


def _ask(door: Path, as_json: bool) -> int:
    found = asked(door)
    text = json.dumps(asdict(found)) if as_json else "; ".join((found.status, *found.why))
    sys.stdout.write(printable(text) + "\n")
    return 0 if found.fit else _EXIT_CODES.get(found.status) or _UNKNOWN


def check(config: Config) -> dict[str, Any]:
    """The state as /state has it."""
    return running(config) or _read(config)


def _read(config: Config) -> dict[str, Any]:
    """Read every source once. There is no second reading to confirm a flag by, so the first one counts."""
    limits = config.policy.model_copy(update={"flag_confirm_s": 0.0, "temperature_confirm_s": 0.0})
    config = config.model_copy(update={"policy": limits, "poll_s": 1.0})
    daemon = Daemon(config, "", None, lambda *_, **__: None, supervisor(config))
    stop = threading.Event()
    timer = threading.Timer(_READ_S, stop.set)
    timer.daemon = True
    timer.start()
    # A round that has heard a whole poll of every source, or from each why it can't see, is the verdict. One whose call
    # hangs may yet come back.
    spoke: set[str] = set()

    def listen(one: Observation) -> None:
        if one.signal is Signal.ALIVE or (one.signal is Signal.FAILED and one.value != Failure.HUNG):
            spoke.add(one.source)

    daemon.listener = listen
    daemon.judged = lambda _: stop.set() if spoke.issuperset(names(config)) else None
    daemon.run(stop)
    timer.cancel()
    if daemon.snapshot is None:
        return {"status": "unknown", "gpus": {}, "faults": [], "blind": [], "waits": ["no source spoke in time"]}
    return state(daemon.snapshot, config.policy)


def in_words(state: dict[str, Any]) -> str:
    lines = [f"{state['status']}: {len(state['gpus'])} GPUs read"]
    lines += [f"  {f['severity']}: {f['id']}: {f['message']} (remedy {f['remedy']})" for f in state["faults"]]
    lines += [f"  blind: {why}" for why in state["blind"]]
    lines += [
        f"  without {one['name']}: {one['trouble']}"
        for one in state.get("sources", ())
        if one["trouble"] and not (one["up"] or one["name"] in state.get("unseen", ()))
    ]
    lines += [f"  waiting: {why}" for why in state["waits"]]
    return "\n".join(printable(line) for line in lines) + "\n"
