"""gpu-health-agent: the per-node agent that keeps broken GPUs away from pods."""

__version__ = "0.1.0"
