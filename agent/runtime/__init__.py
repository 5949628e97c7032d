"""The daemon: a thread that judges, a thread that acts, and what passes between them."""
