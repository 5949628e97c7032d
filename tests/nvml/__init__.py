"""NVML's real binding over a library of ours, written in C."""
