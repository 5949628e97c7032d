"""The presets: a row for each neighbour that acts on what the agent writes.

A row says what is written beside our own names, by which mark it is ours, how it is undone, and where the neighbour
answers. All of it is written under a permit, and undone with what it stands for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from agent.model.world import Taint


class Preset(StrEnum):
    CLUSTER_AUTOSCALER = "cluster-autoscaler"
    EKS = "eks"
    CLUSTER_API = "cluster-api"
    MEDIK8S = "medik8s"
    GKE = "gke"
    HYPERPOD = "hyperpod"
    WEBHOOK = "webhook"
    SLINKY = "slinky"
    DRA = "dra"


@dataclass(frozen=True, slots=True)
class Asking:
    """A label by which another node is asked for. It has no room for a mark: that it is ours is written down."""

    key: str
    value: str
    before: str  # what it must be for us to ask, and is again once nothing is asked for; empty: not there


@dataclass(frozen=True, slots=True)
class Neighbour:
    """What is said to one neighbour."""

    replaces: bool = False  # it acts on a request for a replacement, and needs repair.request_replacement
    fences: bool = False  # single GPUs are fenced, and new pods come to the node's others
    cordons: bool = False  # it acts on a cordon, which stands with our hard taint; CORDON_MARK says that it is ours
    taint: Taint | None = None  # stands beside our hard one, for its time; its value says that it is ours
    condition: str = ""  # a type: False while a replacement is asked for; the reasons ASKED, NOT_ASKED say it is ours
    label: Asking | None = None
    posts: bool = False  # a receiver is told by a POST
    answers: str = ""  # a label by which it says how far it has come
    refuses: str = ""  # and the value of it that says that it can't

    @property
    def names(self) -> tuple[str, ...]:
        """All that is written."""
        label, cordon = self.label.key if self.label else "", CORDON_REASON if self.cordons else ""
        keys = (self.taint.key if self.taint else "", self.condition, label, cordon)
        return tuple(filter(None, keys))


# Cluster Autoscaler counts the node as ready and plans nothing onto it: for pods that find no place it brings another.
# It reads the key alone (its utils/taints), so the value is free to say whose the taint is.
AUTOSCALER_TAINT = Taint(
    "status-taint.cluster-autoscaler.kubernetes.io/gpu-unhealthy", "gpu-health-agent", "NoSchedule"
)

# Karpenter replaces a node on which this was False for some minutes. The reasons say whose the condition is. Since 1.15
# it looks for an Xid in them, and reboots for some (karpenter-provider-aws, pkg/cloudprovider): ours name none.
ACCELERATED = "AcceleratedHardwareReady"
ASKED, NOT_ASKED = "GpuHealthAgentAsksForReplacement", "GpuHealthAgentAsksForNothing"

# Slinky's slurm-operator drains a Slurm node whose Kubernetes node is cordoned, looks at no taint, and gives Slurm this
# annotation as the reason (its api/v1beta1/well_known.go).
CORDON_REASON = "nodeset.slinky.slurm.net/node-cordon-reason"
CORDON_MARK = "gpu-health-agent: "  # the reason begins with it where the cordon is ours
NODE_SET, SLURM_STATE = "NodeSet", "SlurmNodeState"  # its kind of controller, and how its pods' conditions begin
SLURM_BUSY = ("Allocated", "Mixed", "Completing")  # while one of these is true its node is not drained

NEIGHBOURS: Mapping[str, Neighbour] = {
    Preset.CLUSTER_AUTOSCALER: Neighbour(taint=AUTOSCALER_TAINT),
    Preset.EKS: Neighbour(replaces=True, condition=ACCELERATED),
    # Both read GpuReplacementRequested itself: a MachineHealthCheck, a NodeHealthCheck, made by whoever runs them.
    Preset.CLUSTER_API: Neighbour(replaces=True),
    Preset.MEDIK8S: Neighbour(replaces=True),
    # GKE reports the host of a reserved A3 or A4 machine as faulty and moves the node to another one.
    Preset.GKE: Neighbour(
        replaces=True,
        label=Asking("cloud.google.com/fault-behavior", "XID", before=""),
        answers="cloud.google.com/report-and-replace-status",
        refuses="Error",
    ),
    # SageMaker HyperPod, with automatic node recovery, replaces a node of this status. It writes it itself too.
    Preset.HYPERPOD: Neighbour(
        replaces=True,
        label=Asking("sagemaker.amazonaws.com/node-health-status", "UnschedulablePendingReplacement", "Schedulable"),
    ),
    Preset.WEBHOOK: Neighbour(replaces=True, posts=True),
    Preset.SLINKY: Neighbour(cordons=True),
    Preset.DRA: Neighbour(fences=True),
}

ASKING_LABELS = tuple(row.label.key for row in NEIGHBOURS.values() if row.label)
