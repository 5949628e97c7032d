"""What we see: the only code that touches GPUs, the kernel log and the kubelet. It states facts, never opinions."""
