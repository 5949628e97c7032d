"""Where simulated GPUs live, known without loading what they are made of."""

from __future__ import annotations

import os
from pathlib import Path


def simulation_directory() -> Path:
    """Where simulated GPUs are found by default."""
    runtime = os.environ.get("XDG_RUNTIME_DIR") or "/tmp"  # noqa: S108 - the folder in it is made private
    return Path(runtime) / f"gpu-health-agent-{os.getuid()}"
