"""NVML, through pynvml."""
