"""A fleet as plain data, as a table for a terminal, and as one HTML page without a script."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from statistics import median_low
from typing import Any

from agent.actions.fleet import Agent, Fleet, Listed
from agent.config.settings import Config, Mode
from agent.diagnosis.correlate import incidents
from agent.diagnosis.history import History
from agent.model.errors import MalformedError
from agent.model.fault import Fault, Severity
from agent.model.names import DISMISS_ANNOTATION, FAULTS_ANNOTATION, HISTORY_ANNOTATION, STATE_LABEL, WITHDRAWN_LABEL
from agent.model.ownership import opted_out
from agent.model.text import aligned, fault_ids, printable, rfc3339, unix_s
from agent.model.world import Permit, PermitKind, World
from agent.remediation.budget import allowed, free_permit, left_for_others, some, spent
from agent.remediation.ledger import Ledger
from agent.remediation.ledger_json import load as load_ledger
from agent.remediation.other_controllers import upgrading
from agent.remediation.records import Stage
from agent.remediation.recurrence import outlook
from agent.remediation.stored import Stored, load
from agent.status.ledger_view import incidents as incidents_of
from agent.status.ledger_view import lasted
from agent.status.page import document

_WORST_FIRST = ("unhealthy", "draining", "drained", "repairing", "validating", "degraded", "unknown", "", "healthy")
_ALIKE, _ALIKE_S = 3, 600.0  # so many nodes with one fault that began so close together look like a roll-out
_COLUMNS = ("NODE", "STATE", "SINCE", "GPU", "FAULT", "WHY", "WAITS FOR", "AGENT")
_CELL_CHARS = 48


def fleet_state(fleet: Fleet, config: Config, now: float) -> dict[str, Any]:
    """Plain data, times RFC 3339 in UTC; the worst nodes first. ``now``: Unix seconds."""
    world = _world(fleet)
    nodes = [_node(one, fleet, config, now) for one in fleet.nodes]
    nodes.sort(key=lambda one: (_rank(one), one["node"]))
    kinds = [kind for kind in PermitKind if kind is not PermitKind.HOURLY or config.budget.per_hour]
    return {
        "at": rfc3339(now, "seconds"),
        "mode": str(config.mode),
        "paused": fleet.paused,
        "pool": {"nodes": fleet.pool.size, "out_of_service": sorted(fleet.pool.out)},
        "permits": {
            str(kind): {
                "allowed": allowed(world, kind, config.budget),
                "taken": len(_holders(fleet, kind)),
                "by": _holders(fleet, kind),
            }
            for kind in kinds
        },
        "alike": _alike(nodes),
        "nodes": nodes,
    }


def _world(fleet: Fleet) -> World:
    """The pool as whoever asks for a permit sees it."""
    return World(node="", uid="", permits=fleet.permits, pool_size=fleet.pool.size, out=fleet.pool.out)


def another_free(fleet: Fleet, config: Config) -> bool:
    """Whether a node that breaks would find a permit."""
    return left_for_others(_world(fleet), config.budget)


def _holders(fleet: Fleet, kind: PermitKind) -> list[str]:
    taken = (permit for permit in fleet.permits if permit.kind is kind and permit.holder and not permit.abandoned)
    return sorted(map(_holder, taken))


def _holder(permit: Permit) -> str:
    return permit.holder.partition("/")[0]


def _rank(one: Mapping[str, Any]) -> int:
    return _WORST_FIRST.index(one["state"]) if one["state"] in _WORST_FIRST else len(_WORST_FIRST)


def _node(listed: Listed, fleet: Fleet, config: Config, now: float) -> dict[str, Any]:
    stored, unread, ledger = None, [], Ledger()
    try:
        text = listed.annotations.get(FAULTS_ANNOTATION)
        stored = load(text, 0.0) if text is not None else None
    except MalformedError as error:
        unread.append(f"a person: annotation {FAULTS_ANNOTATION}: {error}")
    try:
        ledger = load_ledger(listed.annotations.get(HISTORY_ANNOTATION))
    except MalformedError as error:
        unread.append(f"a person: annotation {HISTORY_ANNOTATION}: {error}")
    faults = incidents(stored.faults, History()) if stored else ()  # as the agent tells them
    free = another_free(fleet, config)
    dismissed, _ = fault_ids(listed.annotations.get(DISMISS_ANNOTATION, ""))
    recurs = outlook(ledger.entries, dismissed, config, now, free)
    return {
        "node": listed.name,
        "state": listed.labels.get(STATE_LABEL, ""),
        "kubernetes": listed.cells.get("Status", ""),
        "since": rfc3339(faults[0].since, "seconds") if faults else None,
        "withdrawn": listed.labels.get(WITHDRAWN_LABEL) == "true",
        "faults": [_fault(fault) for fault in faults],
        "waits": [*unread, *waits(listed.name, listed.labels, stored, fleet, config), *repairs(stored), *recurs],
        "agent": _agent(fleet.agents.get(listed.name), stored),
        "incidents": incidents_of(ledger, now),
    }


def _fault(fault: Fault) -> dict[str, Any]:
    finding = fault.finding
    return {
        "id": finding.id,
        "rule": finding.rule,
        "pci": finding.pci,
        "uuid": fault.uuid,
        "severity": finding.severity.name.lower(),
        "remedy": str(finding.remedy),
        "message": finding.message,
        "since": rfc3339(fault.since, "seconds"),
        "cure_proved": fault.proved,
    }


def _agent(agent: Agent | None, stored: Stored | None) -> dict[str, Any] | None:
    if agent is None:  # of one without a pod nobody can tell whether it still runs
        wrote = rfc3339(stored.at, "seconds") if stored and _by_hand(stored) else None
        return {"by_hand": True, "wrote": wrote} if wrote else None
    return {"pod": agent.pod, "ready": agent.ready, "version": agent.version, "since": rfc3339(agent.since, "seconds")}


def _by_hand(stored: Stored | None) -> bool:
    return stored is not None and stored.writer is not None and stored.writer.by_hand


def waits(node: str, labels: Mapping[str, str], stored: Stored | None, fleet: Fleet, config: Config) -> Iterator[str]:
    """Why nothing goes on, as far as the cluster shows it; the agent's own page knows more."""
    fatal = [f for f in stored.faults if f.finding.severity is Severity.FATAL and not f.proved] if stored else []
    withdrawn, state = labels.get(WITHDRAWN_LABEL) == "true", labels.get(STATE_LABEL, "")
    check = stored.records.validation if stored else None
    if node not in fleet.agents and not _by_hand(stored):
        yield "an agent: no pod of it runs there"
    if opted_out(labels):
        yield "a person: the node is opted out"
    elif why := upgrading(labels):
        yield why
    elif fleet.paused and (fatal or withdrawn):
        yield f"a person: {fleet.paused}"
    elif config.mode is Mode.OBSERVE and fatal and not withdrawn:
        yield "a person: mode observe only reports"
    elif config.mode is not Mode.EVICT and withdrawn:
        yield f"a person: mode {config.mode} moves no pod and repairs nothing"
    elif fatal and not withdrawn:
        kinds = (PermitKind.HOURLY, PermitKind.WITHDRAWN) if config.budget.per_hour else (PermitKind.WITHDRAWN,)
        yield _permit(kinds, fleet, config)
    elif check and check.stage is Stage.FAILED:
        yield f"a person: the check before {check.kind.before} failed ({check.said})"
    elif state == "draining":
        drains = any(one.kind is PermitKind.DRAINING and _holder(one) == node for one in fleet.permits)
        leaving = "its pods to leave (see Events)"
        yield leaving if drains else _permit((PermitKind.DRAINING,), fleet, config)
    elif state == "drained":
        yield "its repair, or a person where none is configured"
    elif state == "validating":
        yield "the proof that it is well"


def repairs(stored: Stored | None) -> Iterator[str]:
    """What was begun, and how far it is."""
    for one in stored.records.begun if stored else ():
        yield f"{one.what}: {one.stage}{f', {one.said}' if one.said else ''}"


def _permit(kinds: Iterable[PermitKind], fleet: Fleet, config: Config) -> str:
    world = _world(fleet)
    for kind in kinds:
        if free_permit(world, kind, config.budget) is None:
            return f"a permit: {spent(world, kind, config.budget)}"
    return "a permit, which is free"


def _alike(nodes: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Faults of one rule that began on several nodes at once: a roll-out looks so, and broken cards don't."""
    begun: dict[str, dict[str, float]] = defaultdict(dict)
    for node in nodes:
        for fault in node["faults"]:
            begun[fault["rule"]].setdefault(node["node"], unix_s(fault["since"]) or 0.0)
    found = []
    for rule, since in begun.items():
        middle = median_low(since.values())
        near = {node: at for node, at in since.items() if abs(at - middle) <= _ALIKE_S / 2}
        if len(near) >= _ALIKE:
            found.append({"rule": rule, "nodes": sorted(near), "since": rfc3339(min(near.values()), "seconds")})
    return found


def as_text(state: Mapping[str, Any], now: float, wide: bool = False) -> str:
    """For a terminal: a row for each node, the budget, and what looks alike."""
    lines = aligned([_COLUMNS, *(_row(one, now, wide) for one in state["nodes"])])
    return "".join(f"{line}\n" for line in [*lines, "", *_sentences(state)])


def _sentences(state: Mapping[str, Any]) -> list[str]:
    sentences = [f"The agents stand still: {state['paused']}."] if state["paused"] else []
    if not state["nodes"]:
        size = state["pool"]["nodes"]
        empty = "The pool is empty: no node has the labels of budget.pool_selector."
        sentences.append(f"None of the pool's {size} nodes has the labels that were asked for." if size else empty)
    for kind, permits in state["permits"].items():
        by = f": {some(permits['by'])}" if permits["by"] else ""
        sentences.append(f"Permits, {kind}: {permits['taken']} of {permits['allowed']} taken{by}.")
    if others := state["pool"]["out_of_service"]:
        sentences.append(f"Out of service, of {state['pool']['nodes']} nodes of the pool: {some(others)}.")
    sentences += [
        f"{one['rule']} on {len(one['nodes'])} nodes within ten minutes, first at {one['since']}: a roll-out looks so."
        for one in state["alike"]
    ]
    return [printable(sentence) for sentence in sentences]


def _row(one: Mapping[str, Any], now: float, wide: bool) -> tuple[str, ...]:
    fault = one["faults"][0] if one["faults"] else None
    more = f" and {len(one['faults']) - 1} more" if len(one["faults"]) > 1 else ""
    state = one["state"] or "no state"
    if one["kubernetes"] != "Ready":
        state += f" ({one['kubernetes']})"
    cells = (
        one["node"],
        state,
        _age(one["since"], now),
        fault["pci"] or "the node" if fault else "",
        f"{fault['rule']}{more}" if fault else "",
        fault["message"] if fault else "",
        "; ".join(one["waits"]),
        _who(one["agent"], now),
    )
    return tuple(_cut(printable(cell), wide) for cell in cells)


def _cut(text: str, wide: bool) -> str:
    return text if wide or len(text) <= _CELL_CHARS else f"{text[: _CELL_CHARS - 1]}…"


def _who(agent: Mapping[str, Any] | None, now: float) -> str:
    if agent is None:
        return "none"
    if "by_hand" in agent:
        return f"by hand, wrote {_age(agent['wrote'], now)} ago"
    ready = "" if agent["ready"] else ", not ready"
    return f"{agent['version'] or 'unknown version'}, {_age(agent['since'], now)}{ready}"


def _age(since: str | None, now: float) -> str:
    at = unix_s(since)
    if at is None:
        return ""
    return lasted(now - at)


def as_html(state: Mapping[str, Any], now: float) -> str:
    """One page without a script, to be kept or sent."""
    rows = (_row(one, now, wide=True) for one in state["nodes"])
    head = "".join(f"<th>{name}</th>" for name in _COLUMNS)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    said = "".join(f"<li>{escape(sentence)}</li>" for sentence in _sentences(state))
    table = f'<div class="table"><table><tr>{head}</tr>{body}</table></div>'
    return document("GPU nodes", f"<h1>GPU nodes, as of {escape(state['at'])}</h1><ul>{said}</ul>{table}")
