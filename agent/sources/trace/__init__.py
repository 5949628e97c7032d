"""The driver's tracepoints."""
