"""The little that can't be read back from the cluster, as one JSON annotation: faults, boot id, kernel position."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from agent.model.errors import MalformedError, NewerError
from agent.model.fault import Card, Evidence, Fault, Finding, Remembered, Severity, Verdict
from agent.model.remedy import Remedy
from agent.model.text import read_json
from agent.remediation.records import Records, as_json, from_json

VERSION = 1
_MOST_FAULTS = 32  # with 200 characters of raw text each, far below the 256 KiB that annotations may hold
_RAW_CHARS = 200


@dataclass(frozen=True, slots=True)
class Stored(Remembered):
    """The whole annotation."""

    at: float = 0.0  # Unix seconds, when the kernel position was written
    records: Records = field(default_factory=Records)


def dump(verdict: Verdict, kernel_seq: int | None, at: float, records: Records) -> str:
    """Only what a restart must know; nothing in it changes while the node stays as it is."""
    faults = [_fault(f) for f in verdict.standing if f.finding.severity > Severity.NOTICE][:_MOST_FAULTS]
    data = {"version": VERSION, "boot_id": verdict.boot_id, "kernel_seq": kernel_seq, "at": int(at), "faults": faults}
    if verdict.onsets:
        data["onsets"] = {pci: list(times) for pci, times in verdict.onsets.items()}
    data |= as_json(records)
    if verdict.cards:
        data["cards"] = {pci: [card.uuid, card.nvlinks] for pci, card in verdict.cards.items()}
    if bound := {pci: c.peers for pci, c in verdict.cards.items() if c.peers is None or c.peers}:
        data["links"] = {pci: None if peers is None else sorted(peers) for pci, peers in bound.items()}
    if verdict.dismissed:
        data["dismissed"] = sorted(verdict.dismissed)
    return json.dumps(data, separators=(",", ":"), sort_keys=True)


def _fault(fault: Fault) -> dict[str, Any]:
    finding = fault.finding
    return {
        **({"drill": finding.drill} if finding.drill else {}),
        "rule": finding.rule,
        "pci": finding.pci,
        "severity": finding.severity.name.lower(),
        "remedy": finding.remedy,
        "message": finding.message,
        "witness": finding.witness,
        "clear_s": None if finding.clear_s is None else float(finding.clear_s),  # as it is read: 600 is not 600.0
        "instance": finding.instance,
        "since": round(fault.since, 3),
        "uuid": fault.uuid,
        "boot_id": fault.boot_id,
        "proved": fault.proved,
        **_counters(fault),
        **({"fell": list(fault.fell)} if fault.fell else {}),
        **({"late": True} if fault.pre_start else {}),
        **({"aside": True} if fault.aside else {}),
        "seen_by": [[w.source, round(w.at, 3), w.raw[:_RAW_CHARS]] for w in fault.witnesses],
    }


def _counters(fault: Fault) -> dict[str, Any]:
    """The energy apart, where older agents look for it."""
    others = {name: value for name, value in fault.counters.items() if name != "energy_j"}
    energy = {"energy_j": fault.counters["energy_j"]} if "energy_j" in fault.counters else {}
    return {**energy, **({"counters": others} if fault.counters else {})}


def _restored(data: Mapping[str, Any]) -> dict[str, float]:
    """What an older agent stored is the energy alone, which proves nothing."""
    if "counters" not in data:
        return {}
    energy = {"energy_j": data["energy_j"]} if data.get("energy_j") is not None else {}
    return {str(name): float(value) for name, value in {**energy, **data["counters"]}.items()}


@lru_cache(maxsize=2)  # the act loop reads the same several times a round
def load(text: str, now: float) -> Stored:
    """Read the annotation back; ``now`` is monotonic seconds, from which restored faults age."""
    try:
        data = read_json(text)
        if isinstance(data["version"], int) and data["version"] > VERSION:
            raise NewerError(f"a newer agent wrote it (schema {data['version']}, this one knows {VERSION})")
        if data["version"] != VERSION:
            raise MalformedError(f"it was written by another version of the agent (schema {data['version']!r})")
        seq = data["kernel_seq"]
        return Stored(
            boot_id=str(data["boot_id"]),
            kernel_seq=None if seq is None else int(seq),
            at=float(data["at"]),
            faults=tuple(_restore(fault, now) for fault in data["faults"]),
            onsets={str(pci): tuple(int(at) for at in times) for pci, times in data.get("onsets", {}).items()},
            dismissed=frozenset(str(key) for key in data.get("dismissed", ())),
            records=from_json(data),
            cards={
                str(pci): Card(str(uuid), int(links), _peers(data.get("links", {}), pci))
                for pci, (uuid, links) in data.get("cards", {}).items()
            },
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise MalformedError(f"it is not what this agent writes ({type(error).__name__}: {error})"[:200]) from error


def _peers(links: Mapping[str, list[str] | None], pci: str) -> frozenset[str] | None:
    peers = links.get(pci, [])
    return None if peers is None else frozenset(map(str, peers))


def restored(text: str | None, now: float) -> Stored | None:
    """What the Node bears; None where that can't be understood, and the plan says so."""
    try:
        return None if text is None else load(text, now)
    except MalformedError:
        return None


def kept(text: str | None) -> Records:
    """What repairs left; nothing in what can't be understood, of which the plan says so."""
    stored = restored(text, 0.0)
    return stored.records if stored else Records()


def _restore(data: dict[str, Any], now: float) -> Fault:
    seen_by = tuple(Evidence(float(at), str(source), str(raw)) for source, at, raw in data["seen_by"])
    clear_s = data["clear_s"]
    instance = data.get("instance")
    finding = Finding(
        rule=str(data["rule"]),
        pci=str(data["pci"]),
        severity=Severity[data["severity"].upper()],
        remedy=Remedy(data["remedy"]),
        message=str(data["message"]),
        evidence=seen_by[-1],
        arrived=now,
        witness=str(data["witness"]),
        clear_s=None if clear_s is None else float(clear_s),
        instance=None if instance is None else int(instance),
        drill=str(data.get("drill", "")),
    )
    return Fault(
        finding=finding,
        since=float(data["since"]),
        began=now,
        last=now,
        uuid=str(data["uuid"]),
        boot_id=str(data["boot_id"]),
        confirmed=True,
        proved=bool(data["proved"]),
        counters=_restored(data),
        fell=tuple(str(name) for name in data.get("fell", ())),
        pre_start=bool(data.get("late", False)),
        aside=bool(data.get("aside", False)),
        witnesses=seen_by,
    )
