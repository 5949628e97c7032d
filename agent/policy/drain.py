"""Which pods may leave now, and which ones a person must decide on."""

from __future__ import annotations

from agent.config import Drain
from agent.model import Remedy
from agent.world import Evict, Pod, Step, Wait

_WHOLE_NODE = (Remedy.REBOOT_NODE, Remedy.REPLACE_NODE)
_NEVER = ("DaemonSet", "Node")  # a DaemonSet's pod would come straight back; a mirror pod is a file


def leaving(pods: tuple[Pod, ...], remedy: Remedy) -> tuple[Pod, ...]:
    """The pods that must be gone before the remedy: all for the node's, those with a GPU for a GPU's.

    Which pod holds which GPU is not asked yet, so a GPU's remedy moves every pod that requests one.
    """
    return tuple(
        sorted(
            (
                pod
                for pod in pods
                if not pod.finished
                and not pod.static
                and pod.owner not in _NEVER
                and (pod.gpu or remedy in _WHOLE_NODE)
            ),
            key=lambda pod: (pod.priority, pod.key),
        )
    )


def drain(pods: tuple[Pod, ...], remedy: Remedy, settings: Drain, blocked: dict[str, str]) -> tuple[Step, ...]:
    """An eviction for each pod that may leave now, a Wait for each that can't."""
    steps: list[Step] = []
    for pod in leaving(pods, remedy):
        if pod.terminating:
            steps.append(Wait(f"pod {pod.key} is terminating"))
        elif pod.namespace in settings.exclude_namespaces and remedy not in _WHOLE_NODE:
            steps.append(Wait(f"pod {pod.key} is in an excluded namespace: a person must move it"))
        elif not pod.owner:
            steps.append(Wait(f"pod {pod.key} has no controller to start it again: a person must move it"))
        else:
            if pod.key in blocked:
                steps.append(Wait(f"pod {pod.key} may not be evicted yet: {blocked[pod.key]}"))
            steps.append(Evict(pod))
    return tuple(steps)
