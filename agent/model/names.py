"""The names on the cluster: the agent's own, and those that people and pods leave there for it. They are frozen."""

from __future__ import annotations

# Of a Node: taints, labels, annotations, conditions.
HARD_TAINT = "gpu-health-agent/unhealthy"
SOFT_TAINT = "gpu-health-agent/degraded"
GATE_TAINT = "gpu-health-agent/not-checked"  # set by whoever makes new nodes; the agent only takes it off
STATE_LABEL = "gpu-health-agent/state"
ERROR_LABEL = "node.kubernetes.io/gpu-error"
OUT_LABEL = "gpu-health-agent/withdrawn-by-others"  # each agent says it of its own Node: a list of Nodes is 20 MB
WITHDRAWN_LABEL = "gpu-health-agent/withdrawn"  # stands while a taint of ours does that takes a permit
MANAGED_LABEL = "gpu-health-agent/managed"  # a person's: "false", "no", "off" or "0" opts the node out
FAULTS_ANNOTATION = "gpu-health-agent/faults"
HISTORY_ANNOTATION = "gpu-health-agent/history"
DISMISS_ANNOTATION = "gpu-health-agent/dismiss"  # a person's
DRILL_ANNOTATION = DRILL_LABEL = "gpu-health-agent/drill"  # a drill's on the Node, and the label of all that it makes
UNHEALTHY, DEGRADED, REPLACEMENT = "GpuUnhealthy", "GpuDegraded", "GpuReplacementRequested"

# Of a pod; all but the second time and the condition are its owner's.
CHECKPOINT_ANNOTATION = "gpu-health-agent/checkpoint"
TIMEOUT_ANNOTATION = "gpu-health-agent/checkpoint-timeout-s"
REQUESTED_ANNOTATION = "gpu-health-agent/checkpoint-requested-at"
SAVED_ANNOTATION = "gpu-health-agent/checkpoint-saved-at"
KEEP_ANNOTATION = "gpu-health-agent/do-not-evict"
DISRUPTED = "DisruptionTarget"  # Kubernetes' own

# Of a remedy's Job, and of its pod.
TEMPLATE_LABEL = "gpu-health-agent/template"
NODE_UID_LABEL = "gpu-health-agent/node-uid"
GPUS_ANNOTATION = "gpu-health-agent/gpus"

# A DeviceTaintRule; its taint has the hard taint's key.
FENCE_RULE = "gpu-health-agent.{node}.{driver}.{device}"

# In the agent's namespace: the permits, and the ConfigMap that pauses every agent.
SLOT_LEASE = "gpu-health-agent-{kind}-{pool}-{index}"
POOL_LABEL = "gpu-health-agent/pool"
PERMIT_KIND_LABEL = "gpu-health-agent/slot"
FREE_LABEL = "gpu-health-agent/free"  # "true" on a permit that was given back, for those that wait
LAST_HOLDER_ANNOTATION = "gpu-health-agent/last-holder"  # of a permit: who gave it back
SELECTOR_ANNOTATION = "gpu-health-agent/pool-selector"  # of a permit: which pool that is, for people
POOL_SIZE_ANNOTATION = "gpu-health-agent/pool-size"  # of a permit: as its holder read it, for those that wait
POOL_UNREAD = "not-read-yet"  # in its place: the permit was taken before the pool was read
LARGE_POOL = 100  # nodes: in such a pool a permit is taken first, and the pool read then
PAUSE_CONFIGMAP = "gpu-health-agent-pause"
PERMIT_VALID_S = 300  # a holder acts only so long after a confirmation

MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"  # of Evictions and Jobs
