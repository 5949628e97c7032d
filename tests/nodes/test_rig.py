"""The nodes leave nothing behind, even if their process is killed."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.nodes.rig import hierarchies, sweep, wait

RIG = """
import sys
from tests.nodes.rig import rig
with rig(1, gpus=0) as made:
    print(made.group, flush=True)
    sys.stdin.read()
"""


def test_killed_it_leaves_no_process_and_the_next_one_sweeps_the_rest() -> None:
    command = [sys.executable, "-c", RIG]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        name = process.stdout.readline().strip()
        assert _processes(name)
        process.kill()
    wait("its processes end", lambda: not _processes(name))
    assert name not in Path("/proc/mounts").read_text()
    sweep()
    assert not [*Path(tempfile.gettempdir()).glob(name), *(h for h in hierarchies() if (h / name).exists())]


def _processes(name: str) -> list[int]:
    """Those that work in the rig's folder or are in its cgroups."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if name.encode() in (process / "cmdline").read_bytes() + (process / "cgroup").read_bytes():
                found.append(int(process.name))
        except OSError:
            continue  # it ended meanwhile
    return found
