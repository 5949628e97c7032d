"""What is wrong. Pure: no clock, no input or output, no threads, no logging; it never reads the cluster."""
