"""What we conclude: pure. No clock, no I/O, no threads, no logging."""
