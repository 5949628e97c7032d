"""A step in words, for logs and people."""

from __future__ import annotations

from collections.abc import Mapping

from agent.model.steps import (
    Announce,
    AskCheckpoint,
    Delete,
    Diagnose,
    Evict,
    GivePermit,
    LiftFence,
    Post,
    Report,
    Retaint,
    SetFence,
    StartJob,
    Step,
    TakePermit,
    Wait,
)
from agent.model.world import Pod


def describe(step: Step) -> str:
    """One clause without a subject."""
    match step:
        case Report(conditions, labels, _):
            parts = [f"{c.type}={c.status}" for c in conditions] + [f"{k}={v}" for k, v in labels.items()]
            return f"report {', '.join(parts) or 'its stored state'}"
        case Retaint(taints, cordon=cordon):
            named = ", ".join(f"{t.key}={t.value}:{t.effect}" for t in taints)
            cordoned = "" if cordon is None else " and cordon it" if cordon else " and undo our cordon"
            return (f"taint the node {named}" if taints else "remove our taint from the node") + cordoned
        case TakePermit(kind, index, confirms, early):
            until = ", until the pool is read" if early else ""
            return f"{'confirm' if confirms else 'take'} {kind} permit {index}{until}"
        case GivePermit(kind, index):
            return f"give {kind} permit {index} back"
        case SetFence(device, gpu, uid, deletes):
            past = ", ".join(pod.key for pod, _ in deletes)
            deleting = f"have Kubernetes delete {past}, past their budgets, from"
            does = deleting if past else "fence" if uid else "try a fence of"
            return f"{does} device {device.name} of {device.driver} ({gpu})"
        case LiftFence(device):
            return f"lift the fence of device {device.name} of {device.driver}"
        case AskCheckpoint(pod=pod):
            return f"ask pod {pod.key} to save a checkpoint"
        case Evict(pod):
            return f"ask for the eviction of pod {pod.key}"
        case Delete(pod):
            return f"delete pod {pod.key} past its PodDisruptionBudget"
        case StartJob(name, remedy):
            return f"start {remedy} as Job {name}"
        case Diagnose(_, level, uuids):
            return f"begin DCGM's diagnosis, level {level}, of {', '.join(uuids)}"
        case Announce(reason=reason, about=about):
            return f"send Event {reason}" + (f" about {about.kind} {about.namespace}/{about.name}" if about else "")
        case Post(word=word, subject=subject):
            return f"post to the webhook: replacement {word} for {subject}"
        case Wait(why):
            return f"wait: {why}"


def describe_clients(uuid: str, pids: Mapping[str, str], pods: tuple[Pod, ...]) -> str:
    """``pids 4711, 4712 (pod research/train of research/Job/train) on GPU-…``"""
    names = {pod.uid: f"pod {pod.key}" + (f" of {pod.workload}" if pod.owner else "") for pod in pods}
    listed = (f"{pid} ({names.get(uid, f'pod UID {uid}')})" if uid else pid for pid, uid in pids.items())
    return f"pids {', '.join(listed)} on {uuid}"


def kind(step: Step) -> str:
    """As metrics name it: outside programs count by these words."""
    return _KINDS.get(type(step)) or type(step).__name__.lower()


_KINDS: Mapping[type, str] = {TakePermit: "takeslot", GivePermit: "giveslot"}
