"""The controllers of other projects, as they are released, beside the agent on a real control plane."""
