"""The Node's conditions: what is reported, and the one that asks another controller for a replacement. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from agent.config.settings import Mode
from agent.model.fault import Fault, Severity, Verdict, identity
from agent.model.names import DEGRADED, REPLACEMENT, UNHEALTHY
from agent.model.neighbours import Preset
from agent.model.remedy import Remedy
from agent.model.steps import On, Post, Step, Wait
from agent.model.world import Condition, PermitKind, World
from agent.remediation.events import camel, plain
from agent.remediation.idle_reset import failed
from agent.remediation.presets import TAKEN_BACK, Request, post_id, request
from agent.remediation.records import Attempt, Records
from agent.remediation.situation import Now, Situation


def replacement(now: Now, records: Records) -> Request:
    """An act, not a report: another controller replaces the node on it. A node that never had it doesn't get it.

    So it is asked for only while we may act at all: a pause takes the request back before it is obeyed.
    """
    world, config = now.case.world, now.case.config
    incident = requested(now, records)
    asking = f"{now.case.verdict.at:.0f} {incident}" if incident else ""
    wanted = request(config.presets, world, asking, now.records.asked)
    ours: tuple[Condition, ...] = ()
    if incident:
        ours = (Condition(REPLACEMENT, "True", "RepairExhausted", "the node is drained, and to be replaced"),)
    elif REPLACEMENT in world.conditions:
        ours = (Condition(REPLACEMENT, "False", "NoReplacement", "no replacement is asked for"),)
    return replace(wanted, conditions=(*ours, *wanted.conditions))


def requested(now: Now, records: Records) -> str:
    """The incident for which another node is asked for; empty if none is."""
    world, config, live = now.case.world, now.case.config, records.live
    aside = now.situation is Situation.KEEP_OFF
    may = config.mode is Mode.EVICT and not (world.paused or aside) and world.held(PermitKind.WITHDRAWN) is not None
    asked = bool(may and live and live.remedy is Remedy.REPLACE_NODE and config.repair.request_replacement)
    return now.treatment.incident if asked and now.treatment else ""


def posts(now: Now) -> tuple[Step, ...]:
    """What the webhook's receiver is yet to be told, once it is written down that it is to be."""
    case, told = now.case, now.records.asked.get(Preset.WEBHOOK)
    if not told or not case.config.webhook.url:
        return ()
    word = "withdrawn" if told.startswith(TAKEN_BACK) else "requested"
    told, data = told.removeprefix(TAKEN_BACK), dict[str, object]()
    if word == "requested":
        if not requested(now, now.records) or not now.treatment:  # it is taken back once that is written down
            return ()
        faults = now.treatment.faults
        cards = (identity(fault, case.verdict.cards) for fault in faults)
        data["faults"] = [
            {"id": fault.finding.id, "message": fault.finding.message, "card": card.words if card else ""}
            for fault, card in zip(faults, cards, strict=True)
        ]
    subject = told.rpartition(" ")[2]
    step = Post(post_id(case.world, told, word), word, subject, {"node_uid": case.world.uid, **data})
    if step.id in case.world.posted:
        return ()
    why = case.world.unposted
    waits = (Wait(f"the webhook could not be told yet that a replacement is {word}: {why}", On.REPAIR),) if why else ()
    return (step, *waits)


def reported(verdict: Verdict, world: World, failed_resets: Mapping[str, Attempt]) -> tuple[Condition, ...]:
    wanted = []
    for kind, severity in ((UNHEALTHY, Severity.FATAL), (DEGRADED, Severity.DEGRADED)):
        faults = [f for f in verdict.faults if f.finding.severity is severity]
        if faults:
            said = [f"{f.finding.id}: {f.finding.message}{_beside(f, failed_resets)}" for f in faults]
            cards = {f.finding.pci: card for f in faults if (card := identity(f, verdict.cards))}
            message = "; ".join([*said, *(f"{pci} is {card.words}" for pci, card in cards.items())])
            wanted.append(Condition(kind, "True", camel(faults[0].finding.rule), plain(message)))
        elif not verdict.blind:
            wanted.append(Condition(kind, "False", "NoGpuFault", "no GPU fault of this severity stands"))
        elif kind in world.conditions:  # blind: keep what was said
            wanted.append(world.conditions[kind])
    return tuple(wanted)


def _beside(fault: Fault, failed_resets: Mapping[str, Attempt]) -> str:
    if fault.aside:
        return " (seen only while the agent stood aside)"
    why = failed(fault, failed_resets)
    return f" (the reset of its idle GPU failed: {why})" if why else ""
