"""When the agent stands aside: for its own repair, for a driver upgrade, for whoever else already acts. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from agent.policy.attempts import Records
from agent.world import World

_UPGRADE = "nvidia.com/gpu-driver-upgrade-state"
_QUIET_UPGRADE = ("", "upgrade-required", "upgrade-done", "upgrade-failed")
_MIG = "nvidia.com/mig.config.state"
_NVSENTINEL = "dgxc.nvidia.com/nvsentinel-state"
_KARPENTER = "karpenter.sh/disrupted"


def upgrading(labels: Mapping[str, str]) -> str:
    """Why the GPUs are not ours to touch or to judge now; empty if they are."""
    upgrade, mig = labels.get(_UPGRADE, ""), labels.get(_MIG, "")
    if upgrade not in _QUIET_UPGRADE:
        return f"the GPU driver is being upgraded ({_UPGRADE}={upgrade})"
    if mig in ("pending", "rebooting"):
        return f"the MIG configuration is being changed ({_MIG}={mig})"
    return ""


def released(labels: Mapping[str, str], records: Records) -> str:
    """Why our own processes must hold no GPU now; empty if they may."""
    if why := upgrading(labels):
        return why
    live = records.live
    if live and live.remedy == "reset_gpu":
        return "the GPU is being reset"
    return ""


def another(world: World) -> str:
    """Who else repairs this node already; then it is only reported on."""
    if state := world.labels.get(_NVSENTINEL):
        return f"NVSentinel acts on the node ({_NVSENTINEL}={state})"
    if any(taint.key == _KARPENTER for taint in world.taints):
        return f"Karpenter replaces the node (taint {_KARPENTER})"
    return ""
