"""What we do: the only code that writes to cluster or hardware."""
