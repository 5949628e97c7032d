"""What makes a Node as large as a GPU cluster has them: the API server takes each write of it apart as a whole."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

from agent.model.names import HARD_TAINT, STATE_LABEL
from tests.cluster.control_plane import ControlPlane


def furniture() -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Images and labels, 20 kB.

    A kubelet reports fifty images unless told otherwise (nodeStatusMaxImages), each by digest and by tag;
    Node Feature Discovery writes a label for each feature of the CPU, GPU Feature Discovery some thirty.
    """
    images = [
        {
            "names": [
                f"registry.example.com/team/image-{i}@sha256:{sha256(bytes([i])).hexdigest()}",
                f"registry.example.com/team/image-{i}:v1.{i}.0-ubuntu22.04",
            ],
            "sizeBytes": 10_000_000 + i,
        }
        for i in range(50)
    ]
    labels = {f"feature.node.kubernetes.io/cpu-cpuid.FEATURE{i}": "true" for i in range(60)}
    return images, labels | {f"nvidia.com/gpu.property-{i}": f"value-{i}" for i in range(30)}


def add(plane: ControlPlane, name: str, labels: dict[str, str], annotations: dict[str, str] | None = None) -> None:
    """A Node of 24 kB that is Ready; nobody plays it."""
    images, furnished = furniture()
    own = {"kubernetes.io/hostname": name, "nvidia.com/gpu.present": "true", "site": "fleet"}
    state = {STATE_LABEL: "unhealthy"}
    gpus = {"nvidia.com/gpu": "8"}
    plane.must(
        "POST",
        "/api/v1/nodes",
        {
            "metadata": {
                "name": name,
                "labels": {**own, **furnished, **(labels and {**labels, **state})},
                "annotations": annotations or {},
            },
            "spec": {"taints": [{"key": HARD_TAINT, "value": "reboot_node", "effect": "NoSchedule"}] if labels else []},
            "status": {
                "capacity": gpus,
                "allocatable": {"cpu": "64", "memory": "512Gi", "pods": "110", **gpus},
                "images": images,
                "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "ready"}],
            },
        },
    )
