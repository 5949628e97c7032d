"""A stand-in for DCGM's library, in C, behind NVIDIA's own Python bindings."""
