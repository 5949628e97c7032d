"""What others do to the node, and when the agent keeps off its GPUs: a driver upgrade, another's or its own repair."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from agent.model.ownership import own_cordon, own_taint
from agent.model.remedy import Remedy
from agent.model.world import World
from agent.remediation.records import Records, Stage

_UPGRADE = "nvidia.com/gpu-driver-upgrade-state"
_QUIET_UPGRADE = ("", "upgrade-required", "upgrade-done", "upgrade-failed")
_MIG = "nvidia.com/mig.config.state"
# NVIDIA's driver manager and MIG manager take gpu-operator's clients of the GPU off the node by these, and may say no
# more: whoever holds a GPU then keeps the driver from being unloaded.
_CLIENTS, _PAUSED = "nvidia.com/gpu.deploy.", ("paused-for-driver-upgrade", "paused-for-mig-change")
_NVSENTINEL = "dgxc.nvidia.com/nvsentinel-state"
_CORDONED = "node.kubernetes.io/unschedulable"
_KARPENTER = {"karpenter.sh/disrupted": "replaces", "karpenter.sh/rebooting": "reboots"}
# Keys, or their beginnings, with which Kubernetes, autoscalers and remediators take a node out of service. A pool's own
# taint (nvidia.com/gpu, a team's) is none of them: counted on every node it would stop all withdrawals for ever.
_OUT = (
    "node.kubernetes.io/",
    "node.cloudprovider.kubernetes.io/",
    "ToBeDeletedByClusterAutoscaler",
    "status-taint.cluster-autoscaler.kubernetes.io/",
    "karpenter.sh/",
    "aws-node-termination-handler/",
    "cloud.google.com/impending-node-termination",
    "remediator.aks.microsoft.com/",
    "aiinfra/gpu-healthcheck",
    "nvidia.com/gpu-error",
    "nvidia.com/gpu-xid-error",
    "nvidia.com/gpu-nvlink-error",
    "nvidia.com/syslog-xid-error",
)


def upgrading(labels: Mapping[str, str]) -> str:
    """Why the GPUs are not ours to touch or to judge now; empty if they are."""
    upgrade, mig = labels.get(_UPGRADE, ""), labels.get(_MIG, "")
    if upgrade not in _QUIET_UPGRADE:
        return f"the GPU driver is being upgraded ({_UPGRADE}={upgrade})"
    if mig in ("pending", "rebooting"):
        return f"the MIG configuration is being changed ({_MIG}={mig})"
    paused = sorted(key for key, value in labels.items() if value in _PAUSED and key.startswith(_CLIENTS))
    return f"gpu-operator's managers need the GPU for themselves ({paused[0]}={labels[paused[0]]})" if paused else ""


def clients_paused(labels: Mapping[str, str]) -> bool:
    """Whether anybody, the agent included, took gpu-operator's clients of the GPU off: the device plugin is one."""
    return any(key.startswith(_CLIENTS) and value.startswith("paused-for-") for key, value in labels.items())


def released(labels: Mapping[str, str], records: Records, heard: frozenset[str] | None, asked: bool) -> str:
    """Why our own processes must hold no GPU now; empty if they may.

    A reset that is reserved waits until its GPUs were ``heard`` in this life of the agent, for an earlier one may have
    done it; None: that was waited for long enough. One of an idle GPU also waits until it was ``asked`` which pod holds
    which, for nobody is while NVML is closed.
    """
    if why := upgrading(labels):
        return why
    live = records.live
    asked = asked or not records.idle.withdrawn
    looked = not live or live.stage is Stage.STARTED or heard is None or (asked and heard.issuperset(live.uuids))
    if live and live.remedy is Remedy.RESET_GPU and looked:
        return "the GPU is being reset"
    return ""


def out_by_others(world: World, more: Collection[str]) -> bool:
    """Whether a taint of somebody else's keeps every pod away from the node; ``more`` are the site's own keys."""
    firm = (taint for taint in world.taints if taint.effect != "PreferNoSchedule" and not own_taint(taint))
    if own_cordon(world.cordon_reason):  # Kubernetes makes a taint of it
        firm = (taint for taint in firm if taint.key != _CORDONED)
    return any(taint.key in more or taint.key.startswith(_OUT) for taint in firm)


def another(world: World) -> str:
    """Who else repairs this node already; then it is only reported on."""
    if state := world.labels.get(_NVSENTINEL):
        return f"NVSentinel acts on the node ({_NVSENTINEL}={state})"
    for taint in world.taints:
        if does := _KARPENTER.get(taint.key):
            return f"Karpenter {does} the node (taint {taint.key})"
    return ""
