"""Which pod a process belongs to, by the host's ``/proc``. It needs hostPID: pids that NVML names are the host's."""

from __future__ import annotations

import re
from pathlib import Path

PROC = Path("/proc")
_MOST_BYTES = 64 * 1024
# Cgroup paths may begin with /../.. when read from another cgroup namespace; UIDs come with _ (systemd) or -.
_POD = re.compile(r"pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12})(?![0-9a-f])")


def pod_of(pid: int, proc: Path = PROC) -> str:
    """The pod's UID; empty for a process of the host, one that is gone, or one that can't be seen from here."""
    try:
        with (proc / str(pid) / "cgroup").open(encoding="ascii", errors="replace") as file:
            text = file.read(_MOST_BYTES)
    except OSError:
        return ""
    found = _POD.search(text)
    return found[1].replace("_", "-") if found else ""
