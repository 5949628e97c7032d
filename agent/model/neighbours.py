"""The presets: a row for each neighbour that acts on what the agent writes.

A row says what is written beside our own words, by which mark it is ours, what it was before and is again once nothing
is asked for, and where the neighbour answers. All of it is written under a permit, and undone with what it stands for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from agent.model.world import Taint


class Preset(StrEnum):
    CLUSTER_AUTOSCALER = "cluster-autoscaler"
    EKS = "eks"


@dataclass(frozen=True, slots=True)
class Neighbour:
    """What is said to one neighbour."""

    replaces: bool = False  # it acts on a request for a replacement, and needs repair.request_replacement
    taint: Taint | None = None  # stands beside our hard one, for its time; its value says that it is ours
    condition: str = ""  # a type: False while a replacement is asked for; the reasons ASKED, NOT_ASKED say it is ours

    @property
    def names(self) -> tuple[str, ...]:
        """All that is written."""
        return tuple(filter(None, (self.taint.key if self.taint else "", self.condition)))


# Cluster Autoscaler counts the node as ready and plans nothing onto it: for pods that find no place it brings another.
# It reads the key alone (its utils/taints), so the value is free to say whose the taint is.
AUTOSCALER_TAINT = Taint(
    "status-taint.cluster-autoscaler.kubernetes.io/gpu-unhealthy", "gpu-health-agent", "NoSchedule"
)

# Karpenter replaces a node on which this was False for 10 minutes, past every budget. It reads the status
# alone (karpenter-provider-aws, pkg/cloudprovider), so the reasons say whose the condition is.
ACCELERATED = "AcceleratedHardwareReady"
ASKED, NOT_ASKED = "GpuHealthAgentAsksForReplacement", "GpuHealthAgentAsksForNothing"

NEIGHBOURS: Mapping[str, Neighbour] = {
    Preset.CLUSTER_AUTOSCALER: Neighbour(taint=AUTOSCALER_TAINT),
    Preset.EKS: Neighbour(replaces=True, condition=ACCELERATED),
}
