"""``nodes``: the fleet in one table, or one of its nodes as ``explain`` tells it."""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import suppress
from http import HTTPStatus

from agent.actions.api import Api, connect
from agent.actions.fleet import deployed, read_fleet
from agent.actions.pool import names
from agent.commands.setup import configured, persons
from agent.config.settings import Config
from agent.model.errors import AgentError, RefusedError, UsageError
from agent.status.fleet_view import as_html, as_text, fleet_state
from agent.status.ledger_view import as_table

_AGAIN_S = 5.0
_COMPLETE_S = 2.0  # nobody waits for longer behind a tab key
_CLEAR = "\x1b[H\x1b[2J"


EXAMPLES = (
    ("gpu-health-agent nodes", "the worst first"),
    ("gpu-health-agent nodes --selector pool=a100 --watch", "again every 5 s"),
    ("gpu-health-agent nodes node-1", "its faults, and what happens next"),
    ("gpu-health-agent nodes -o json", "for a script"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    node = parser.add_argument("node", nargs="?", metavar="NODE", help="this one, with evidence and what happens next")
    node.completer = _names  # type: ignore[attr-defined]  # argcomplete's way
    parser.add_argument("-l", "--selector", default="", metavar="K=V", help="only nodes with these labels")
    parser.add_argument("-o", "--output", choices=("wide", "json", "html"), help="the default cuts long cells")
    parser.add_argument("--history", action="store_true", help="the last incidents, with how long each part took")
    parser.add_argument("-w", "--watch", action="store_true", help="again every 5 s")
    parser.add_argument("--config", metavar="F", help="the agents' (default: as the cluster has it)")
    parser.add_argument("--kubeconfig", metavar="F", help="credentials (default: as kubectl finds them)")


def _names(parsed_args: argparse.Namespace, **_: object) -> list[str]:
    """Of all Nodes, for the shell; none where the cluster does not say them."""
    with suppress(AgentError):
        return names(connect(persons(parsed_args.kubeconfig), _COMPLETE_S, gzip=True))
    return []


def of_the_agents(api: Api, path: str | None) -> Config:
    """What the agents run with: the file at ``path``, or as the cluster has it, or else the defaults, which is told."""
    given = configured(path)
    if path:
        return given
    if (found := deployed(api, given.budget.namespace)) is None:
        sys.stderr.write("The agents' configuration can't be read, so defaults are shown: name it with --config.\n")
    return found or given


def run(arguments: argparse.Namespace) -> int:
    api = connect(persons(arguments.kubeconfig), gzip=True)
    config = of_the_agents(api, arguments.config)
    if arguments.node:
        from agent.commands.explain import in_words, of_node  # with much that the table has no use for

        state = of_node(api, arguments.node, config)
        text = as_table([(arguments.node, state["incidents"])]) if arguments.history else in_words(state, None)
        sys.stdout.write(json.dumps(state, indent=2) + "\n" if arguments.output == "json" else text)
        return 0
    while True:
        now = time.time()
        try:
            fleet = read_fleet(api, config.budget, arguments.selector)
        except RefusedError as error:
            if arguments.selector and error.status == HTTPStatus.BAD_REQUEST:
                raise UsageError(f"--selector: {error.sentence}") from error
            raise
        state = fleet_state(fleet, config, now)
        if arguments.output == "json":
            text = json.dumps(state, indent=2) + "\n"
        elif arguments.history:
            text = as_table((one["node"], one["incidents"]) for one in state["nodes"])
        elif arguments.output == "html":
            text = as_html(state, now)
        else:
            text = as_text(state, now, wide=arguments.output == "wide")
        sys.stdout.write((_CLEAR if arguments.watch and sys.stdout.isatty() else "") + text)
        sys.stdout.flush()
        if not arguments.watch:
            return 0
        time.sleep(_AGAIN_S)
