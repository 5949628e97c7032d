"""``explain``: every standing fault in sentences, from the running agent, a Node or a recording."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agent.actions.api import Api, connect
from agent.actions.fleet import read_fleet_without_nodes
from agent.actions.kube import KubeClient
from agent.commands.nodes import of_the_agents
from agent.commands.replay import ending
from agent.commands.setup import as_text, configured, lines_of, opened, persons, undamaged
from agent.config.settings import Config
from agent.diagnosis.correlate import incidents
from agent.diagnosis.history import History
from agent.diagnosis.linked import linked
from agent.model.errors import MalformedError, NotRunningError, RefusedError, UsageError
from agent.model.fault import Identity
from agent.model.names import HISTORY_ANNOTATION, STATE_LABEL
from agent.model.text import printable, rfc3339
from agent.model.world import World
from agent.remediation.events import plain
from agent.remediation.ledger_json import load as load_ledger
from agent.remediation.recurrence import outlook
from agent.remediation.stored import load
from agent.remediation.taints import effect_on
from agent.status.client import running
from agent.status.fleet_view import another_free, repairs, waits
from agent.status.ledger_view import as_table
from agent.status.ledger_view import incidents as past
from agent.status.state import fault

EXAMPLES = (
    ("gpu-health-agent explain", "all faults of the agent that runs here"),
    ("gpu-health-agent explain xid-79@0000:1b:00.0", "one of them"),
    ("gpu-health-agent explain --node node-1", "from anywhere, by the Node's annotation"),
    ("gpu-health-agent explain --recording run.jsonl", "as a recording ends"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("fault", nargs="?", metavar="FAULT", help="one fault's id (default: all that stand)")
    parser.add_argument("--config", metavar="F", help="that of the agent (default: all defaults)")
    parser.add_argument("--node", metavar="N", help="from this Node's annotation, instead of the agent that runs here")
    parser.add_argument("--recording", type=Path, metavar="F", help="as a recording of 'run --record' ends")
    parser.add_argument("--kubeconfig", metavar="F", help="credentials for --node (default: as kubectl finds them)")
    parser.add_argument("--history", action="store_true", help="the last incidents, with how long each part took")
    parser.add_argument("--json", action="store_true", help="the whole state, as /state has it")


def run(arguments: argparse.Namespace) -> int:
    if arguments.node:
        api = connect(persons(arguments.kubeconfig))
        state = of_node(api, arguments.node, of_the_agents(api, arguments.config))
    elif arguments.recording:
        state = recorded(arguments.recording, configured(arguments.config) if arguments.config else None)
    elif (answer := running(config := configured(arguments.config))) is not None:
        state = answer
    else:
        raise NotRunningError(f"no agent answers on port {config.http.port}: name a node with --node")
    if arguments.history:
        past = state.get("incidents", [])
        text = json.dumps(past, indent=2) + "\n" if arguments.json else as_table([(state["node"] or "", past)])
        sys.stdout.write(text)
        return 0
    text = in_words(state, arguments.fault)
    faults = [fault for fault in state["faults"] if arguments.fault in (None, fault["id"])]
    sys.stdout.write(json.dumps(faults, indent=2) + "\n" if arguments.json else text)
    return 0


def of_node(api: Api, node: str, config: Config) -> dict[str, Any]:
    """What a Node's annotation knows. UsageError, RefusedError, UnreachableError."""
    world = KubeClient(api, node, config).look(closely=False)
    state = stored(world, config)
    kept = load(world.stored or "", 0.0)
    free = True
    try:
        fleet = read_fleet_without_nodes(api, config.budget)
        why = list(waits(node, world.labels, kept, fleet, config))
        free = another_free(fleet, config)
    except RefusedError as error:  # to a person who may not list Leases or Nodes
        why = [f"perhaps a permit, which can't be seen: {error}"] if kept.faults else []
    try:
        recurs = outlook(load_ledger(world.history).entries, world.dismissed, config, time.time(), free)
    except MalformedError as error:
        recurs = (f"a person: annotation {HISTORY_ANNOTATION}: {error}",)
    return {**state, "waits": [*why, *state["waits"], *recurs]}


def stored(world: World, config: Config) -> dict[str, Any]:
    """What the Node's annotation knows, as /state would show it. UsageError if it can't be understood."""
    if world.stored is None:
        raise UsageError(f"node {world.node} bears no annotation gpu-health-agent/faults: no agent ran there")
    try:
        kept = load(world.stored, 0.0)
    except MalformedError as error:
        raise UsageError(f"annotation gpu-health-agent/faults of node {world.node}: {error}") from error
    together, effect = linked(kept.cards, {}), effect_on(world.taints)
    return {
        "node": world.node,
        "status": world.labels.get(STATE_LABEL, "unknown"),
        "at": rfc3339(kept.at),
        "faults": [
            fault(one, config.policy, config.mode, together, effect, cards=kept.cards, node=world.node)
            for one in incidents(kept.faults, History())  # as the agent tells them; what it doubts is not stored
        ],
        "waits": [
            *repairs(kept),
            *(
                f"{key}: the reset of its idle GPU {'is tried again' if one.unbegun else 'failed'}: "
                f"{one.said or one.stage} (Job {one.job})"
                for key, one in kept.records.idle.failed_resets.items()
            ),
        ],
        "blind": [],
        "fences": [fence.words for fence in world.fences],
        "incidents": _past(world.history),
    }


def _past(history: str | None) -> list[dict[str, Any]]:
    """UsageError if it can't be understood."""
    try:
        return past(load_ledger(history), time.time())
    except MalformedError as error:
        raise UsageError(f"annotation {HISTORY_ANNOTATION}: {error}") from error


def recorded(path: Path, other: Config | None) -> dict[str, Any]:
    """How a recording ends. UsageError for a file that is none."""
    with opened(path) as stream, as_text(stream) as text:
        verdict, config = ending(undamaged(lines_of(text)), other)
    return {
        "node": path.name,
        "status": str(verdict.status),
        "at": rfc3339(verdict.at),
        "faults": [
            fault(one, config.policy, config.mode, verdict.linked, cards=verdict.cards) for one in verdict.faults
        ],
        "waits": [],
        "blind": list(verdict.blind_lines),
    }


def in_words(state: Mapping[str, Any], only: str | None) -> str:
    """The text for a terminal; UsageError for a fault that doesn't stand."""
    faults = [one for one in state["faults"] if only in (None, one["id"])]
    if only and not faults:
        standing = ", ".join(one["id"] for one in state["faults"]) or "none"
        raise UsageError(f"{only}: no such fault stands; standing: {standing}")
    lines = [f"{state.get('node') or 'this node'} is {state['status']} ({state.get('at', '')})"]
    for one in faults:
        lines += ["", *_fault(one)]
    fences = state.get("fences", ())
    lines += [""] if state["blind"] or state["waits"] or fences else []
    lines += [f"fenced: {fence}" for fence in fences]
    lines += [f"blind: {why}" for why in state["blind"]]
    lines += [f"waiting: {why}" for why in state["waits"]]
    return "\n".join(printable(line) for line in lines) + "\n"


def _fault(one: Mapping[str, Any]) -> list[str]:
    times = "once" if one["count"] == 1 else f"{one['count']} times"
    rows = [
        ("what", plain(one["message"])),
        *(("card", words) for words in [Identity(**one.get("card", {})).words] if words),
        ("seen", f"{times}, first {one['since']}, last {one['last']}"),
        *(("evidence", f"{w['source']} {w['at']}: {w['raw']}") for w in one["evidence"]),
        *(("explains", other) for other in one["explains"]),
        *(("but", doubt) for doubt in one["doubts"]),
        *(("reset", f"together with {other}, which is linked to it") for other in one.get("reset_together_with", ())),
        ("clears by", one["clears"]),
        ("next", one["next"]),
        *(("paste", command) for command in one.get("commands", ())),
    ]
    return [
        f"{one['id']}: {one['severity']}, remedy {one['remedy']}",
        *(f"  {name + ':':<11}{text}" for name, text in rows),
    ]
