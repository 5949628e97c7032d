"""The ledger as the JSON of its annotation: within 3.5 KiB, and never a reason to stop."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache
from typing import Any

from agent.model.errors import MalformedError
from agent.model.remedy import Remedy
from agent.model.text import read_json
from agent.remediation import strict
from agent.remediation.ledger import BUCKETS_S, PHASES, End, Entry, Lasted, Ledger, Moment, Repair, Sums, Suspect
from agent.remediation.records import Stage

VERSION = 1
_MOST_READ = 64  # incidents: folding thousands of them one by one would hold the act loop for minutes
MOST_BYTES = 3584  # with the 28 KiB of the faults it stays within the 32 KiB that are the agent's


def dump(ledger: Ledger) -> str:
    """Its oldest incidents go into the sums until it fits; last of all the words of the one that is left."""
    while True:
        text = _json(ledger)
        if len(text) <= MOST_BYTES:
            return text
        if len(ledger.entries) < 2:
            return _json(replace(ledger, entries=tuple(map(_short, ledger.entries))))
        ledger = ledger.folded()


def _short(entry: Entry) -> Entry:
    cards = tuple(replace(one, serial="", slot="") for one in entry.suspects)
    return replace(entry, suspects=cards, faults=entry.faults[:2], repairs=entry.repairs[-2:])


def _json(ledger: Ledger) -> str:
    data = {"version": VERSION, "incidents": [_entry(one) for one in ledger.entries], **_sums(ledger.older)}
    return json.dumps(data, separators=(",", ":"), sort_keys=True)


def _entry(entry: Entry) -> dict[str, Any]:
    onset = entry.times[Moment.ONSET]
    data: dict[str, Any] = {
        "onset": onset,
        "after": {moment: at - onset for moment, at in entry.times.items() if moment is not Moment.ONSET},
        "faults": list(entry.faults),
        "gpus": entry.gpus,
    }
    if entry.suspects:
        data["cards"] = [[one.pci, one.uuid, one.serial, one.slot] for one in entry.suspects]
    if entry.repairs:
        data["repairs"] = [
            [one.remedy, one.number, one.stage, max(0, one.ended_at - onset) if one.ended_at else None]
            for one in entry.repairs
        ]
    if entry.collected:
        data["collected"] = entry.collected
    if entry.again:
        data["again"] = entry.again
    if entry.idle:
        data["idle"] = True
    if entry.by:
        data["by"] = entry.by
    else:
        data["clock"] = [entry.boot_id, entry.boot_s]
    return data


def _sums(sums: Sums) -> dict[str, Any]:
    if sums == Sums():
        return {}
    ends: dict[str, dict[str, int]] = {}
    for (rule, end), count in sums.ends.items():
        ends.setdefault(rule, {})[end] = count
    lasted = {phase: [one.count, one.seconds, *one.within] for phase, one in sums.lasted.items()}
    return {"older": {"ends": ends, "cards": dict(sums.cards), "lost_gpu_s": dict(sums.lost_gpu_s), "lasted_s": lasted}}


@lru_cache(maxsize=4)  # the act loop reads the same several times a round
def load(text: str | None) -> Ledger:
    """An empty one before the first incident. MalformedError."""
    if text is None:
        return Ledger()
    try:
        data = strict.table(read_json(text))
        if (version := strict.whole(data["version"])) != VERSION:
            raise MalformedError(f"another version of the agent wrote it (schema {version}, this one knows {VERSION})")
        if len(entries := strict.each(data["incidents"])) > _MOST_READ:
            raise ValueError(f"{len(entries)} incidents, where no agent writes more than {_MOST_READ}")
        return Ledger(tuple(map(_read, entries)), _read_sums(strict.table(data.get("older", {}))))
    except (KeyError, ValueError) as error:
        raise MalformedError(f"it is not what this agent writes ({type(error).__name__}: {error})"[:200]) from error


def _read(value: object) -> Entry:
    data = strict.table(value)
    onset = strict.second(data["onset"])
    after = {Moment(name): strict.second(s) for name, s in strict.table(data["after"]).items()} | {Moment.ONSET: 0}
    boot_id, boot_s = strict.each(data.get("clock", ["", 0]))
    if "by" in data and Moment.ENDED not in after:
        raise ValueError("an incident that somebody ended, without its end")
    return Entry(
        {moment: onset + after[moment] for moment in Moment if moment in after},
        strict.texts(data["faults"]),
        tuple(map(_suspect, strict.each(data.get("cards", [])))),
        strict.whole(data["gpus"]),
        tuple(_repair(one, onset) for one in strict.each(data.get("repairs", []))),
        End(strict.text(data["by"])) if "by" in data else None,
        strict.text(data.get("collected", "")),
        strict.whole(data.get("again", 0)),
        strict.flag(data.get("idle", False)),
        strict.text(boot_id),
        strict.whole(boot_s),
    )


def _suspect(value: object) -> Suspect:
    pci, uuid, serial, slot = strict.texts(value)
    return Suspect(strict.pci(pci), uuid, serial, slot)


def _repair(value: object, onset: int) -> Repair:
    remedy, number, stage, ended = strict.each(value)
    ended_at = 0 if ended is None else onset + strict.second(ended)
    return Repair(Remedy(strict.text(remedy)), strict.whole(number, 1), Stage(strict.text(stage)), ended_at)


def _read_sums(data: Any) -> Sums:
    cards, lost = (
        {key: strict.whole(n) for key, n in strict.table(data.get(name, {})).items()}
        for name in ("cards", "lost_gpu_s")
    )
    ends = {
        (rule, End(end)): strict.whole(count)
        for rule, by in strict.table(data.get("ends", {})).items()
        for end, count in strict.table(by).items()
    }
    lasted = {phase: _lasted(one) for phase, one in strict.table(data.get("lasted_s", {})).items() if phase in PHASES}
    return Sums(ends, cards, lost, lasted)


def _lasted(value: object) -> Lasted:
    count, seconds, *within = map(strict.whole, strict.each(value))
    if len(within) != len(BUCKETS_S):
        raise ValueError(f"a phase with {len(within)} bounds, not {len(BUCKETS_S)}")
    return Lasted(count, seconds, tuple(within))
