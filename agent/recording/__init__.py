"""What was seen and decided, written down so that it can be decided again."""
