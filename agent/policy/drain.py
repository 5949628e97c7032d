"""Which pods may leave now, which save their work first, and which ones a person must decide on."""

from __future__ import annotations

from agent.config import Drain
from agent.model import Remedy, Severity, Verdict
from agent.world import AskCheckpoint, Delete, Evict, On, Pod, SlotKind, Step, Wait, World

_WHOLE_NODE = (Remedy.REBOOT_NODE, Remedy.REPLACE_NODE)
_NEVER = ("DaemonSet", "Node")  # a DaemonSet's pod would come straight back; a mirror pod is a file
_LOST = ("xid-79", "gpu-lost", "gpu-missing")  # nothing on such a GPU can be saved any more
_MOST_RETURNS = 3


def bad_gpus(verdict: Verdict, lost: bool = False) -> frozenset[str]:
    """UUIDs of the GPUs with a fatal fault, or of the ``lost`` ones; empty if one of them isn't known."""
    faults = [f for f in verdict.faults if f.finding.severity is Severity.FATAL]
    faults = [f for f in faults if not lost or f.finding.rule in _LOST]
    known = frozenset(fault.uuid for fault in faults if fault.uuid)
    return known if all(fault.uuid for fault in faults) else frozenset()


def leaving(pods: tuple[Pod, ...], verdict: Verdict) -> tuple[Pod, ...]:
    """The pods that must be gone before the remedy: all for the node's, those on the bad GPU for a GPU's.

    Where it isn't known which pod holds which GPU, every pod that requests one; lowest priority first.
    """
    bad, whole = bad_gpus(verdict), verdict.remedy in _WHOLE_NODE
    found = [
        pod
        for pod in pods
        if not pod.finished
        and not pod.static
        and pod.owner not in _NEVER
        and not pod.ours
        and (whole or (pod.gpu and (pod.gpus is None or not bad or bool(pod.gpus & bad))))
    ]
    return tuple(sorted(found, key=lambda pod: (pod.priority, pod.key)))


def drain(verdict: Verdict, world: World, settings: Drain) -> tuple[Step, ...]:
    """A step for each pod that may leave now or save its work, a Wait for each that can't."""
    held = world.held(SlotKind.WITHDRAWN)
    overdue = bool(held and held.taken_s >= settings.deadline_s.of(verdict.remedy))
    steps: list[Step] = []
    for pod in leaving(world.pods or (), verdict):
        why, on = _keeps(pod, verdict, world, settings, overdue)
        if why:
            steps.append(Wait(f"pod {pod.key} {why}", on))
            continue
        if pod.checkpoint_said and not pod.checkpoint:
            steps.append(Wait(f"pod {pod.key} is asked for no checkpoint: {pod.checkpoint_said}"))
        outcome, saving = _checkpoint(pod, verdict, settings)
        if not outcome:
            steps += saving
            continue
        refused = world.blocked.get(pod.key)
        if refused and overdue and settings.on_deadline == "delete":
            steps.append(Delete(pod, outcome))
            continue
        if refused:
            steps.append(Wait(f"pod {pod.key} may not be evicted yet: {refused}", On.EVICTION))
        steps.append(Evict(pod, outcome))
    return tuple(steps)


def _keeps(pod: Pod, verdict: Verdict, world: World, settings: Drain, overdue: bool) -> tuple[str, On]:
    """Why this pod stays for now, in words that don't change while it does, and whether only a person can move it."""
    if pod.terminating:
        if pod.stuck:
            return "should have ended and did not: see the node's kubelet", On.POD
        return "is terminating", On.OTHER
    if pod.protected and not overdue:
        deadline_s = settings.deadline_s.of(verdict.remedy)
        return f"asks by annotation to be left alone; it is, for {deadline_s:.0f} s", On.OTHER
    if settings.unmanaged == "wait" and not pod.owner:
        return "has no controller to start it again: a person must move it", On.POD
    if settings.unmanaged == "wait" and pod.pinned:
        return "keeps its data on this node's own disk: a person must move it", On.POD
    whole = verdict.remedy in _WHOLE_NODE
    holds = pod.gpus is not None and bool(bad_gpus(verdict))
    if not whole and not holds:
        if pod.namespace in settings.exclude_namespaces:
            return "is in an excluded namespace: a person must move it", On.POD
        if pod.tolerates:
            return "tolerates our taint, and may not hold the bad GPU: a person must move it", On.POD
    if world.returns.get(pod.workload, 0) >= _MOST_RETURNS:
        return f"came back {_MOST_RETURNS} times although the node is tainted: a person must stop it", On.POD
    return "", On.OTHER


def _checkpoint(pod: Pod, verdict: Verdict, settings: Drain) -> tuple[str, tuple[Step, ...]]:
    """How its checkpoint ended, empty while it is awaited with the steps for that."""
    if not pod.checkpoint:
        return "none", ()
    if pod.checkpoint == "sigterm":
        return "unconfirmed", ()
    if pod.saved:
        return "saved", ()
    limit_s = min(pod.checkpoint_timeout_s, settings.checkpoint_s)
    gone = bad_gpus(verdict, lost=True)
    lost = any(f.finding.rule in _LOST for f in verdict.faults if f.finding.severity is Severity.FATAL)
    if lost and (pod.gpus is None or not gone or pod.gpus & gone):
        limit_s = 0.0
    if (pod.asked_s is not None and pod.asked_s >= limit_s) or limit_s == 0:
        return "expired", ()
    said = f": {pod.checkpoint_said}" if pod.checkpoint_said else ""
    wait = Wait(f"pod {pod.key} has {limit_s:.0f} s to save its checkpoint{said}")
    return "", (AskCheckpoint(pod), wait)
