"""What to do about a verdict. Pure: no clock, no input or output, no threads, no logging."""
