"""A step in words, for logs and people."""

from __future__ import annotations

from agent.model.world import (
    Announce,
    AskCheckpoint,
    Delete,
    Diagnose,
    Evict,
    GiveSlot,
    Report,
    Retaint,
    StartJob,
    Step,
    TakeSlot,
    Wait,
)


def describe(step: Step) -> str:
    """One clause without a subject."""
    match step:
        case Report(conditions, labels, _):
            parts = [f"{c.type}={c.status}" for c in conditions] + [f"{k}={v}" for k, v in labels.items()]
            return f"report {', '.join(parts) or 'its stored state'}"
        case Retaint(taints):
            return f"taint the node {', '.join(f'{t.key}={t.value}:{t.effect}' for t in taints)}" if taints else (
                "remove our taint from the node"
            )  # fmt: skip
        case TakeSlot(kind, index):
            return f"take {kind} permit {index}"
        case GiveSlot(kind, index):
            return f"give {kind} permit {index} back"
        case AskCheckpoint(pod):
            return f"ask pod {pod.key} to save a checkpoint"
        case Evict(pod):
            return f"ask for the eviction of pod {pod.key}"
        case Delete(pod):
            return f"delete pod {pod.key} past its budget"
        case StartJob(name, remedy):
            return f"start {remedy} as Job {name}"
        case Diagnose(_, level, uuids):
            return f"begin DCGM's diagnosis, level {level}, of {', '.join(uuids)}"
        case Announce(reason=reason):
            return f"send Event {reason}"
        case Wait(why):
            return f"wait: {why}"
