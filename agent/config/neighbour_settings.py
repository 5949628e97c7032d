"""The settings of what others are told, and of what they leave to the agent."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from agent.config.limits import Section, form

_URL = form(r"https?://[^\s/]+\S*", "write a URL, as https://example.com/replace")


class Gate(Section):
    """New nodes that whoever makes them taints until their GPUs were seen well."""

    enabled: bool = False
    """Take the startup taint gpu-health-agent/not-checked, or Cluster Autoscaler's form of it, off the node after the
    first verdict that is healthy and misses nothing. Modes taint and evict only."""
    diagnose: Literal[1, 2, 3, 4] | None = None
    """The level of DCGM's diagnosis that all its GPUs must pass before; from level 2 on it waits for idle ones."""


class Webhook(Section):
    """Who is told by the preset webhook."""

    url: Annotated[str, *_URL] | None = None  # of the receiver
    secret_file: Path = Path("/etc/gpu-health-agent/webhook/secret")
    """What each POST is signed with, read anew each time."""
