"""The names that the agent leaves on the cluster."""

from __future__ import annotations

HARD_TAINT = "gpu-health-agent/unhealthy"
SOFT_TAINT = "gpu-health-agent/degraded"
OUT_LABEL = "gpu-health-agent/withdrawn-by-others"  # each agent says it of its own Node: a list of Nodes is 20 MB
PERMIT_VALID_S = 300  # a holder acts only so long after a confirmation

STATE_LABEL = "gpu-health-agent/state"
ERROR_LABEL = "node.kubernetes.io/gpu-error"
UNHEALTHY, DEGRADED, REPLACEMENT = "GpuUnhealthy", "GpuDegraded", "GpuReplacementRequested"
