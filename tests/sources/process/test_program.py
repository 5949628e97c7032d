"""What a source's program does in the same way as every other."""

from __future__ import annotations

import os
import subprocess
import sys

PROGRAM = """
import sys
from agent.model.observation import Observation, Signal
from agent.sources.process.program import kept_on, say
def follow():
    try:
        say(Observation(0, "kmsg", Signal.ALIVE))
    finally:
        sys.stdout.write("what another thread has not flushed yet")
sys.exit(kept_on(follow, str, 9))
"""


def test_a_source_that_nobody_reads_any_more_ends_without_a_word() -> None:
    read, write = os.pipe()
    os.close(read)
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with os.fdopen(write, "wb") as nobody:
        ran = subprocess.run([sys.executable, "-c", PROGRAM], stdout=nobody, stderr=subprocess.PIPE, env=buffered)
    assert (ran.returncode, ran.stderr) == (0, b"")
