"""A source is a process: here it is started, watched, served to another container, and ended."""
