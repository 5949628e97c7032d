"""The ledger as data and as a table for a terminal: what happened to a node, how long each part took, how it ended."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from agent.model.text import aligned, printable, rfc3339
from agent.remediation.ledger import PHASES, Entry, Ledger, Moment

_COLUMNS = ("NODE", "ONSET", "FAULT", "GPU", *map(str.upper, PHASES), "GPU-HOURS", "ENDED BY", "EVIDENCE")
_BY = {"proof": "proof", "person": "a person", "card": "another card"}
_UNITS = (("d", 86400), ("h", 3600), ("m", 60))


def incidents(ledger: Ledger, at: float) -> list[dict[str, Any]]:
    """Plain data, the latest first, times RFC 3339 in UTC. ``at``: Unix seconds, for one that has not ended."""
    return [_incident(entry, at) for entry in reversed(ledger.entries)]


def _incident(entry: Entry, at: float) -> dict[str, Any]:
    return {
        "faults": list(entry.faults),
        "cards": [{"pci": one.pci, "uuid": one.uuid, "serial": one.serial, "slot": one.slot} for one in entry.suspects],
        **{moment: rfc3339(entry.times[moment], "seconds") if moment in entry.times else None for moment in Moment},
        "phases_s": entry.phases,
        "repairs": [
            {
                "remedy": str(one.remedy),
                "number": one.number,
                "stage": str(one.stage),
                "ended": rfc3339(one.ended_at, "seconds") if one.ended_at else None,
            }
            for one in entry.repairs
        ],
        "collected": entry.collected or None,
        "ended_by": entry.by,
        "lost_gpu_s": entry.lost_gpu_s(at),
    }


def as_table(nodes: Iterable[tuple[str, Iterable[Mapping[str, Any]]]]) -> str:
    """A row for each incident of each node, as ``incidents`` has them."""
    rows = [_row(node, one) for node, found in nodes for one in found]
    if not rows:
        return "No incident is noted: no fault withdrew a node, or would have.\n"
    return "".join(f"{line}\n" for line in aligned([_COLUMNS, *rows]))


def _row(node: str, one: Mapping[str, Any]) -> tuple[str, ...]:
    first, *more = one["faults"] or [""]
    rule, _, _ = first.partition("@")
    phases = (lasted(one["phases_s"][name]) if name in one["phases_s"] else "" for name in PHASES)
    cells = (
        node,
        one["onset"],
        f"{rule} and {len(more)} more" if more else rule,
        ", ".join(card["pci"] for card in one["cards"]) or "the node",
        *phases,
        f"{one['lost_gpu_s'] / 3600:.1f}",
        _BY.get(one["ended_by"] or "", "stands"),
        one["collected"] or "",
    )
    return tuple(map(printable, cells))


def lasted(seconds: float) -> str:
    """As kubectl writes ages."""
    for unit, size in _UNITS:
        if seconds >= 2 * size:
            return f"{int(seconds // size)}{unit}"
    return f"{max(0, int(seconds))}s"
