"""NVIDIA's own ``ft_launcher`` asks the agent's door before each start of its ranks."""
