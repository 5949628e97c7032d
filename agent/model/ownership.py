"""Names that other controllers read as well, and the mark in each that says it is ours."""

from __future__ import annotations

from collections.abc import Mapping

from agent.model.names import ERROR_LABEL, GATE_TAINT, HARD_TAINT, MANAGED_LABEL, SOFT_TAINT, UNHEALTHY
from agent.model.neighbours import ASKED, CORDON_MARK, NEIGHBOURS, NOT_ASKED
from agent.model.world import Condition, Taint

# gpu-operator deploys its clients of a GPU by these Node labels where they are "true", and anybody theirs by "client".
# The driver's and the container toolkit's are never touched. NVIDIA's driver manager and MIG manager pause them alike,
# by paused-for-driver-upgrade and paused-for-mig-change, and leave a "false" to whoever wrote it.
OPERANDS = (
    "nvidia.com/gpu.deploy.device-plugin",
    "nvidia.com/gpu.deploy.gpu-feature-discovery",
    "nvidia.com/gpu.deploy.dcgm",
    "nvidia.com/gpu.deploy.dcgm-exporter",
    "nvidia.com/gpu.deploy.dcgm-dra",
    "nvidia.com/gpu.deploy.dcgm-exporter-dra",
    "nvidia.com/gpu.deploy.dra-validator",
    "nvidia.com/gpu.deploy.client",
    "nvidia.com/gpu.deploy.dra-driver",
)

# The others' pods have claims, and can't end while this one is not there to take them back.
LAST_OPERAND = OPERANDS[-1]

# NVIDIA's driver of whole GPUs and MIG instances by DRA; its other one, compute-domain.nvidia.com, has none.
GPU_DRIVER = "gpu.nvidia.com"

OPERAND_ON, OPERAND_PAUSED = "true", "paused-for-gpu-reset"


# Startup taints of a new node, which the agent may take off and nothing else. Cluster Autoscaler plans as if the second
# were not there, as it does with every key of this beginning.
GATE_TAINTS = (GATE_TAINT, "startup-taint.cluster-autoscaler.kubernetes.io/gpu-health-agent")


def opted_out(labels: Mapping[str, str]) -> bool:
    """Whether a person wants nothing of us on this node."""
    return labels.get(MANAGED_LABEL, "").lower() in ("false", "no", "off", "0")


def own_taint(taint: Taint) -> bool:
    """Whether it is ours to change and to remove; a startup taint is so to remove only."""
    return taint.key in (HARD_TAINT, SOFT_TAINT, *GATE_TAINTS) or any(taint == row.taint for row in NEIGHBOURS.values())


def own_cordon(reason: str) -> bool:
    """Whether a cordon of this reason is ours."""
    return reason.startswith(CORDON_MARK)


def own_error_label(labels: Mapping[str, str], conditions: Mapping[str, Condition], noted: bool | None) -> bool:
    """Whether ``node.kubernetes.io/gpu-error`` is ours to take off.

    ``noted`` is what the agent wrote down of it. An older one wrote nothing, and set it where it said GpuUnhealthy.
    """
    unhealthy = conditions.get(UNHEALTHY)
    ours = noted if noted is not None else unhealthy is not None and unhealthy.status == "True"
    return ours and labels.get(ERROR_LABEL) == "true"


def asked_labels(labels: Mapping[str, str], asked: Mapping[str, str]) -> Mapping[str, str]:
    """Of the labels by which another node is asked for those that are ours, and what each was before.

    ``asked`` is what the agent wrote down of them. One that another has changed since is another's.
    """
    ours = (row.label for preset, row in NEIGHBOURS.items() if preset in asked and row.label)
    return {label.key: label.before for label in ours if labels.get(label.key) == label.value}


def own_condition(condition: Condition) -> bool:
    """Of a preset's, which others set too."""
    preset = any(condition.type == row.condition for row in NEIGHBOURS.values())
    return preset and condition.reason in (ASKED, NOT_ASKED)
