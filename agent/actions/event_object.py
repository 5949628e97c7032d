"""A Kubernetes Event on the Node, or on a pod that runs there."""

from __future__ import annotations

from typing import Any

from agent.model.steps import Announce


def event_of(step: Announce, node: str, pod: tuple[str, str] | None, now: str) -> tuple[str, dict[str, Any]]:
    """The Event's namespace, and the Event. ``pod``: the namespace and name of the step's pod, where they are known."""
    # A Node has no namespace: its Events are kept in "default". Its uid is its name, as the kubelet has it.
    namespace, about = "default", {"kind": "Node", "name": node, "uid": node}
    if pod:
        namespace, name = pod
        about = {"kind": "Pod", "namespace": namespace, "name": name, "uid": step.pod}
    return namespace, {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": step.name, "namespace": namespace},
        "type": "Warning" if step.warning else "Normal",
        "reason": step.reason,
        "message": step.message,
        "involvedObject": {"apiVersion": "v1", **about},
        "source": {"component": "gpu-health-agent", "host": node},
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
