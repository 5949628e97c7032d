"""What agents kept of what they saw, replayed: it must be decided anew as it was decided live."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from typing import Any


def decided_anew(archive: bytes) -> list[dict[str, Any]]:
    """The decisions of all recordings in an archive of ``evidence``; AssertionError if a replay decides otherwise."""
    found = []
    for recording in _recordings(archive):
        command = [sys.executable, "-m", "agent", "replay", "-"]
        told = subprocess.run(command, input=recording, check=True, capture_output=True).stdout
        anew = [_bare(json.loads(line)) for line in told.splitlines()]
        lines = map(json.loads, recording.decode().splitlines())
        live = [_bare(line["decision"]) for line in lines if "decision" in line]
        assert live, "nothing was decided in it"
        # What stood as it begins was decided before, and a replay says so first.
        assert live in (anew, anew[1:]), f"live {live}, anew {anew}"
        found += live
    assert found, "nothing was recorded"
    return found


def _bare(decision: dict[str, Any]) -> dict[str, Any]:
    """Without the sentences: what the agent read names no workload any more, and one of its sentences may."""
    faults = [{key: value for key, value in fault.items() if key != "message"} for fault in decision["faults"]]
    return {**decision, "faults": faults}


def _recordings(archive: bytes) -> Iterator[bytes]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for member in tar.getmembers():
            if member.name.startswith("recordings/"):
                recording = tar.extractfile(member)
                assert recording is not None
                yield gzip.decompress(recording.read())
