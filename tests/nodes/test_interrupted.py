"""What a drill leaves behind that is interrupted; and pods of simulated nodes as processes, on the way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.nodes.interrupted import PHASES


def test_a_drill_interrupted_in_any_phase_leaves_nothing_behind() -> None:
    command = [sys.executable, "-m", "tests.nodes.interrupted"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("nothing is left") == len(PHASES)
