"""The little that can't be read back from the cluster, as one JSON annotation: faults, boot id, kernel position."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from typing import Any

from agent.model.errors import MalformedError, NewerError
from agent.model.fault import Card, Evidence, Fault, Finding, Identity, Remembered, Severity, Verdict
from agent.model.remedy import Remedy
from agent.model.text import LAST_S, read_json
from agent.model.world import Claim
from agent.remediation import strict
from agent.remediation.records import Records, as_json, cut, from_json

VERSION = 1
# Every watcher of Nodes receives it. All that the agent writes into annotations is to stay within 32 KiB.
MOST_BYTES = 28 * 1024
_WORDS = (200, 60, 0)  # characters of each text in it: the whole first, and less where it does not fit


@dataclass(frozen=True, slots=True)
class Stored(Remembered):
    """The whole annotation."""

    at: float = 0.0  # Unix seconds, when the kernel position was written
    records: Records = field(default_factory=Records)
    writer: Claim | None = None  # which life of the agent acted last; None: an older agent's
    left_out: int = 0  # faults for which there was no room: a restart forgets them


def dump(verdict: Verdict, kernel_seq: int | None, at: float, records: Records, writer: Claim | None = None) -> str:
    """Only what a restart must know; nothing in it changes while the node stays as it is.

    Where it would be too long, words go first, then faults; last of all the worst one of each GPU.
    """
    bad = [fault for fault in verdict.standing if fault.finding.severity > Severity.NOTICE]
    for words in _WORDS:
        others = _others(verdict, kernel_seq, at, records, words)
        if writer:
            others["writer"] = [writer.term, writer.life]
        whose = verdict.cards if words == _WORDS[0] else {fault.finding.pci for fault in bad}
        if known := {pci: _known(card, words) for pci, card in verdict.cards.items() if card.identity and pci in whose}:
            others["identity"] = known
        faults = [_fault(fault, words) for fault in bad]
        if len(text := _json({**others, "faults": faults})) <= MOST_BYTES:
            return text
    room = MOST_BYTES - len(_json({**others, "faults": [], "left_out": len(bad)}))
    kept = set()
    for index in _ranked(verdict, bad):
        room -= len(_json(faults[index])) + 1
        if room < 0:
            break
        kept.add(index)
    faults = [fault for index, fault in enumerate(faults) if index in kept]
    return _json({**others, "faults": faults, "left_out": len(bad) - len(faults)})


def _ranked(verdict: Verdict, bad: list[Fault]) -> list[int]:
    """Which of them are kept first: the worst of each GPU and of the node, the worst elsewhere, then the others."""
    worst: dict[str, int] = {}
    for index, fault in enumerate(bad):  # they are in that order
        worst.setdefault(fault.finding.pci, index)
    first = sorted(worst.values(), key=lambda index: bad[index].finding.pci not in ("", *verdict.cards))
    return [*first, *(index for index in range(len(bad)) if index not in worst.values())]


def _json(data: Mapping[str, Any]) -> str:
    return json.dumps(data, separators=(",", ":"), sort_keys=True)


def _others(verdict: Verdict, kernel_seq: int | None, at: float, records: Records, words: int) -> dict[str, Any]:
    """All of the annotation but its faults."""
    position = {"boot_id": verdict.boot_id, "kernel_seq": kernel_seq, "at": int(_writable(at))}
    data: dict[str, Any] = {"version": VERSION, **position}
    if verdict.onsets:
        data["onsets"] = {pci: list(times) for pci, times in verdict.onsets.items()}
    data |= as_json(records, words)
    if verdict.cards:
        data["cards"] = {pci: [card.uuid, card.nvlinks] for pci, card in verdict.cards.items()}
    if read := sorted(pci for pci, card in verdict.cards.items() if card.there(verdict.boot_id)):
        data["read"] = read
    if bound := {pci: c.peers for pci, c in verdict.cards.items() if c.peers is None or c.peers}:
        data["links"] = {pci: None if peers is None else sorted(peers) for pci, peers in bound.items()}
    if verdict.dismissed:
        data["dismissed"] = sorted(verdict.dismissed)
    return data


def _known(card: Card, words: int) -> dict[str, str]:
    return {name: cut(value, min(words, 64) or 24) for name, value in asdict(card.identity).items() if value}


def _fault(fault: Fault, words: int) -> dict[str, Any]:
    finding = fault.finding
    seen_by = fault.witnesses if words else fault.witnesses[-1:]
    return {
        **({"drill": finding.drill} if finding.drill else {}),
        **({"switch": finding.switch} if finding.switch else {}),
        "rule": finding.rule,
        "pci": finding.pci,
        "severity": finding.severity.name.lower(),
        "remedy": finding.remedy,
        "message": cut(finding.message, words or 40),
        "witness": finding.witness,
        "clear_s": None if finding.clear_s is None else float(finding.clear_s),  # as it is read: 600 is not 600.0
        "instance": finding.instance,
        "since": _writable(fault.since),
        "uuid": fault.uuid,
        "boot_id": fault.boot_id,
        "proved": fault.proved,
        **_counters(fault),
        **({"fell": list(fault.fell)} if fault.fell else {}),
        **({"late": True} if fault.pre_start else {}),
        **({"aside": True} if fault.aside else {}),
        **({"after": fault.after} if fault.after else {}),
        "seen_by": [[w.source, _writable(w.at), cut(w.raw, words)] for w in seen_by],
    }


def _writable(at: float) -> float:
    """The time as ``load`` takes it, whatever the clock was."""
    return round(min(max(0.0, at), LAST_S), 3)


def _counters(fault: Fault) -> dict[str, Any]:
    """The energy apart, where older agents look for it."""
    others = {name: value for name, value in fault.counters.items() if name != "energy_j"}
    energy = {"energy_j": fault.counters["energy_j"]} if "energy_j" in fault.counters else {}
    return {**energy, **({"counters": others} if fault.counters else {})}


def _restored(data: Mapping[str, object]) -> dict[str, float]:
    """What an older agent stored is the energy alone, which proves nothing."""
    if "counters" not in data:
        return {}
    energy = {"energy_j": data["energy_j"]} if data.get("energy_j") is not None else {}
    return {name: strict.number(value, 0.0) for name, value in {**energy, **strict.table(data["counters"])}.items()}


@lru_cache(maxsize=2)  # the act loop reads the same several times a round
def load(text: str, now: float) -> Stored:
    """Read the annotation back; ``now`` is monotonic seconds, from which restored faults age. MalformedError."""
    try:
        data = strict.table(read_json(text))
        version = strict.whole(data["version"], -(2**64))
        if version > VERSION:
            raise NewerError(f"a newer agent wrote it (schema {version}, this one knows {VERSION})")
        if version != VERSION:
            raise MalformedError(f"it was written by another version of the agent (schema {version})")
        return _whole(data, now)
    except (KeyError, ValueError) as error:
        raise MalformedError(f"it is not what this agent writes ({type(error).__name__}: {error})"[:200]) from error


def _whole(data: Mapping[str, object], now: float) -> Stored:
    seq, boot_id, links = data["kernel_seq"], strict.text(data["boot_id"]), strict.table(data.get("links", {}))
    faults = tuple(_restore(strict.table(fault), now) for fault in strict.each(data["faults"]))
    if len({fault.finding.id for fault in faults}) < len(faults):
        raise ValueError("a fault stands in it twice")
    onsets, cards, known = (strict.table(data.get(name, {})) for name in ("onsets", "cards", "identity"))
    read = dict.fromkeys(strict.texts(data.get("read", [])), boot_id)
    return Stored(
        boot_id=boot_id,
        kernel_seq=None if seq is None else strict.whole(seq, -1),
        at=strict.at(data["at"]),
        faults=faults,
        onsets={strict.pci(pci): tuple(map(strict.second, strict.each(times))) for pci, times in onsets.items()},
        dismissed=frozenset(strict.texts(data.get("dismissed", []))),
        records=from_json(data),
        writer=_claim(data["writer"]) if "writer" in data else None,
        left_out=strict.whole(data.get("left_out", 0)),
        cards={
            strict.pci(pci): _card(card, links.get(pci, []), read.get(pci, ""), known.get(pci, {}))
            for pci, card in cards.items()
        },
    )


def _claim(writer: object) -> Claim:
    term, life = strict.each(writer)
    return Claim(strict.whole(term, 1, 2**53), strict.text(life))


def _card(card: object, peers: object, boot_id: str, known: object) -> Card:
    uuid, nvlinks = strict.each(card)
    bound = None if peers is None else frozenset(map(strict.pci, strict.each(peers)))
    names = {name: strict.text(value) for name, value in strict.table(known).items()}
    identity = Identity(**{one.name: names[one.name] for one in fields(Identity) if one.name in names})
    return Card(strict.text(uuid), strict.whole(nvlinks), bound, boot_id, identity)


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


def _restore(data: Mapping[str, object], now: float) -> Fault:
    seen_by = tuple(_evidence(one) for one in strict.each(data["seen_by"]))
    if not seen_by:
        raise ValueError("a fault that nobody saw")
    clear_s, instance = data["clear_s"], data.get("instance")
    finding = Finding(
        rule=strict.rule(data["rule"]),
        pci=strict.pci(data["pci"]),
        severity=Severity[strict.text(data["severity"]).upper()],
        remedy=Remedy(strict.text(data["remedy"])),
        message=strict.text(data["message"]),
        evidence=seen_by[-1],
        arrived=now,
        witness=strict.text(data["witness"]),
        clear_s=None if clear_s is None else strict.number(clear_s, 0.0),
        instance=None if instance is None else strict.whole(instance),
        drill=strict.text(data.get("drill", "")),
        switch=strict.pci(data.get("switch", "")),
    )
    return Fault(
        finding=finding,
        since=strict.at(data["since"]),
        began=now,
        last=now,
        uuid=strict.text(data["uuid"]),
        boot_id=strict.text(data["boot_id"]),
        confirmed=True,
        proved=strict.flag(data["proved"]),
        counters=_restored(data),
        fell=strict.texts(data.get("fell", [])),
        pre_start=strict.flag(data.get("late", False)),
        aside=strict.flag(data.get("aside", False)),
        after=strict.text(data.get("after", "")),
        witnesses=seen_by,
    )


def _evidence(one: object) -> Evidence:
    source, at, raw = strict.each(one)
    return Evidence(strict.at(at), strict.text(source), strict.text(raw))
