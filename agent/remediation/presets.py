"""What other controllers act on by its name, and the mark in each that says it is ours: without it, it is another's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from agent.model.world import HARD_TAINT, SOFT_TAINT, Condition, Taint

# Cluster Autoscaler counts the node as ready and plans nothing onto it: for pods that find no place it brings another.
# It reads the key alone (its utils/taints), so the value is free to say whose the taint is.
AUTOSCALER_TAINT = Taint(
    "status-taint.cluster-autoscaler.kubernetes.io/gpu-unhealthy", "gpu-health-agent", "NoSchedule"
)
# Karpenter replaces a node on which this was False for 10 minutes, past every budget: an act, and never a report. It
# reads the status alone (karpenter-provider-aws, pkg/cloudprovider), so the reasons say whose the condition is.
ACCELERATED = "AcceleratedHardwareReady"
ASKED, NOT_ASKED = "GpuHealthAgentAsksForReplacement", "GpuHealthAgentAsksForNothing"
# gpu-operator deploys its clients of a GPU by these Node labels where they are "true"; the values are their pods' label
# "app". The driver's and the container toolkit's are never touched. NVIDIA's driver manager and MIG manager pause them
# alike, by paused-for-driver-upgrade and paused-for-mig-change, and leave a "false" to whoever wrote it.
OPERANDS = {
    "nvidia.com/gpu.deploy.device-plugin": "nvidia-device-plugin-daemonset",
    "nvidia.com/gpu.deploy.gpu-feature-discovery": "gpu-feature-discovery",
    "nvidia.com/gpu.deploy.dcgm": "nvidia-dcgm",
    "nvidia.com/gpu.deploy.dcgm-exporter": "nvidia-dcgm-exporter",
}
OPERAND_ON, OPERAND_PAUSED = "true", "paused-for-gpu-reset"


def own_taint(taint: Taint) -> bool:
    """Whether it is ours to change and to remove."""
    return taint.key in (HARD_TAINT, SOFT_TAINT) or taint == AUTOSCALER_TAINT


def own_condition(condition: Condition) -> bool:
    """For one that others set too."""
    return condition.reason in (ASKED, NOT_ASKED)


def spoken_for(presets: Iterable[str], conditions: Mapping[str, Condition]) -> str:
    """Why Karpenter can't be asked; empty if it can, or if nobody wants to."""
    there = conditions.get(ACCELERATED)
    if "eks" not in presets or there is None or own_condition(there):
        return ""
    return f"condition {ACCELERATED} is another's ({there.reason[:64]}): it is left, and asks for no other node"


def beside_hard(presets: Iterable[str], taints: Iterable[Taint]) -> tuple[Taint, ...]:
    """What stands beside our hard taint, for its time; where another has said the same already, nothing of ours."""
    theirs = any(taint.key == AUTOSCALER_TAINT.key and not own_taint(taint) for taint in taints)
    return (AUTOSCALER_TAINT,) if "cluster-autoscaler" in presets and not theirs else ()


def accelerated(presets: Iterable[str], conditions: Mapping[str, Condition], asked: bool) -> tuple[Condition, ...]:
    """False while a replacement is asked for, True after it; a node that never had it from us doesn't get it."""
    there = conditions.get(ACCELERATED)
    if there and not own_condition(there):
        return ()
    if asked and "eks" in presets:
        return (Condition(ACCELERATED, "False", ASKED, "the node is drained, and to be replaced"),)
    return (Condition(ACCELERATED, "True", NOT_ASKED, "no replacement is asked for"),) if there else ()
