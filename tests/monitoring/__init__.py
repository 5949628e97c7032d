"""Monitoring with the real programs: promtool, Prometheus, Alertmanager, amtool."""
