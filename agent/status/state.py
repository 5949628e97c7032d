"""Snapshot → the JSON of /state and of ``check --json``: verdict, faults, steps, what is waited for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from agent import __version__
from agent.config.limits import Limits
from agent.config.settings import Mode
from agent.diagnosis.advice import clears, commands, next_step
from agent.model.fault import Card, Fault, Sets, identity
from agent.model.remedy import Remedy
from agent.model.text import rfc3339
from agent.remediation.case import Treatment
from agent.status.ledger_view import incidents
from agent.status.snapshot import Snapshot


def state(shot: Snapshot, limits: Limits) -> dict[str, Any]:
    """Plain data; status and severity in lower case, times RFC 3339 in UTC."""
    verdict = shot.verdict
    return {
        "node": shot.node,
        "version": __version__,
        "mode": shot.mode,
        "at": rfc3339(verdict.at),
        "status": verdict.status,
        "remedy": verdict.remedy,
        "withdraw": verdict.withdraw,
        "treatment": _treatment(shot.treatment) if shot.treatment else None,
        "withdrawn": shot.withdrawn,
        "blind": list(verdict.blind_lines),
        "unseen": {
            name: {"kind": reason.kind, "failure": reason.failure, "pci": reason.pci}
            for name, reason in verdict.blind.items()
        },
        "faults": [
            fault(
                f,
                limits,
                shot.mode,
                verdict.linked,
                shot.degraded_effect,
                f.finding.id in shot.resets,
                verdict.cards,
                shot.node,
            )
            for f in verdict.faults
        ],
        "steps": list(shot.steps),
        "waits": [*(wait.why for wait in shot.waits), *shot.coming],
        "stage": shot.stage,
        "degraded_effect": shot.degraded_effect,
        "fences": list(shot.fences),
        "withdrawn_since": rfc3339(shot.withdrawn_since) if shot.withdrawn_since else None,
        "aside": shot.keep_off,
        "requests": dict(shot.requests),
        "checkpoints": dict(shot.checkpoints),
        "incidents": incidents(shot.ledger, shot.ledger_at),
        "look_s": shot.look_s,
        "act_age_s": shot.act_age_s,
        "cards": {pci: card.uuid for pci, card in sorted(verdict.cards.items())},
        "gpus": {pci: {"at": rfc3339(o.at), **o.values} for pci, o in sorted(shot.readings.items())},
        "xids": [
            {"pci": pci, "code": code, "count": count, "last": rfc3339(at)}
            for (pci, code), (count, at) in sorted(shot.xids.items())
        ],
        "sources": [
            {
                "name": s.name,
                "up": s.up,
                "age_s": s.age_s,
                "starts": s.starts,
                "garbage": s.garbage,
                "pid": s.pid,
                "trouble": s.trouble,
                "version": s.version,
                "poll_s": s.poll_s,
            }
            for s in shot.sources
        ],
    }


def _treatment(one: Treatment) -> dict[str, Any]:
    return {
        "remedy": one.remedy,
        "faults": [fault.finding.id for fault in one.faults],
        "reset_together_with": sorted(one.reset_set - one.gpus) if one.remedy is Remedy.RESET_GPU else [],
        "idle": one.idle,
    }


def fault(
    one: Fault,
    limits: Limits,
    mode: str = Mode.EVICT,
    linked: Sets | None = None,
    effect: str | None = None,
    resets: bool = False,
    cards: Mapping[str, Card] | None = None,
    node: str = "",
) -> dict[str, Any]:
    """``linked``: which GPUs must be reset together; ``effect``: of the degraded node's taint, where that is known;
    ``resets``: its GPU is reset by itself once nobody uses it."""
    finding = one.finding
    along = (linked or {}).get(one.uuid, ()) if finding.remedy is Remedy.RESET_GPU else ()
    return {
        "id": finding.id,
        "pci": finding.pci,
        "uuid": one.uuid,
        "card": asdict(identity(one, cards or {})),
        "severity": finding.severity.name.lower(),
        "remedy": finding.remedy,
        "message": finding.message,
        "since": rfc3339(one.since),
        "last": rfc3339(finding.evidence.at),
        "count": one.count,
        "latched": finding.clear_s is None,
        "cure_proved": one.proved,
        "only_aside": one.aside,
        "evidence": [{"at": rfc3339(w.at), "source": w.source, "raw": w.raw} for w in one.witnesses],
        "explains": [symptom.finding.id for symptom in one.joined],
        "doubts": list(one.doubts),
        "reset_together_with": sorted(along),
        "clears": clears(finding, limits, one.joined),
        "next": next_step(one, mode, along, effect, resets),
        "commands": list(commands(one, node, along)),
    }
