"""DCGM, through its own Python bindings."""
