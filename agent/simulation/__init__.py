"""GPUs that follow a scenario, and a cluster in memory."""
