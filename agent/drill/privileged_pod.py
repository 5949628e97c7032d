"""The pod that does on a node what only the node can: of the agent's own image, privileged, and soon gone."""

from __future__ import annotations

import secrets
from typing import Any

from agent.drill.cluster import MissedError
from agent.drill.kit import Object
from agent.model.names import DRILL_LABEL
from agent.model.text import read_json

_DEADLINE_S = 240  # on a busy machine a container takes a minute to start; what it does there takes seconds


def privileged_pod(node: str, namespace: str, agent: Object, what: str, arguments: list[str]) -> Object:
    """In the agent's namespace, which allows privileged pods; without a token, so that it can ask nothing of anyone."""
    container = agent["spec"]["containers"][0]
    spec: dict[str, Any] = {
        "nodeName": node,
        "restartPolicy": "Never",
        "activeDeadlineSeconds": _DEADLINE_S,
        "hostPID": True,
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 2,  # for what it stopped to go on
        "tolerations": [{"operator": "Exists"}],
        "containers": [
            {
                "name": "drill",
                "image": container["image"],
                "imagePullPolicy": container.get("imagePullPolicy", "IfNotPresent"),
                "command": ["python3", "-m", "agent.drill.on_node", *arguments],
                "securityContext": {"privileged": True, "runAsUser": 0, "readOnlyRootFilesystem": True},
                "volumeMounts": [
                    {"name": "kmsg", "mountPath": "/dev/kmsg"},
                    {"name": "pod-resources", "mountPath": "/var/lib/kubelet/pod-resources", "readOnly": True},
                ],
            }
        ],
        "volumes": [
            {"name": "kmsg", "hostPath": {"path": "/dev/kmsg", "type": "CharDevice"}},
            {"name": "pod-resources", "hostPath": {"path": "/var/lib/kubelet/pod-resources"}},
        ],
    }
    if secrets_ := agent["spec"].get("imagePullSecrets"):
        spec["imagePullSecrets"] = secrets_
    name = f"gpu-health-drill-{what}-{secrets.token_hex(3)}"
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {DRILL_LABEL: "true"}},
        "spec": spec,
    }


def finished(pod: Object) -> dict[str, Any] | None:
    """What it did; None while it is at it. MissedError if it failed."""
    phase = pod.get("status", {}).get("phase")
    statuses = pod.get("status", {}).get("containerStatuses") or [{}]
    ended = statuses[0].get("state", {}).get("terminated") or {}
    text = str(ended.get("message", ""))
    if phase == "Failed":
        why = text or pod["status"].get("message") or ended.get("reason") or "no message"
        raise MissedError(f"the drill's pod on {pod['spec']['nodeName']} failed: {str(why)[:300]}")
    return report_of(text) if phase == "Succeeded" and text else None


def report_of(text: str) -> dict[str, Any]:
    """What a program of the drill reports that it did. MissedError: it said something else."""
    try:
        return dict(read_json(text))
    except (ValueError, TypeError) as error:
        raise MissedError(
            f"the drill's program on the node did not answer with a JSON object: {text!r}"[:300]
        ) from error
