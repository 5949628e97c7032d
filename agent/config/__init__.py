"""Settings and limits: one YAML file."""
