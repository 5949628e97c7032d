"""A drill on simulated nodes is interrupted in each of its phases, by either signal, and leaves nothing behind.

A program of its own, for it runs inside the namespaces that ``enter`` makes; ``test_interrupted`` starts it.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from agent.model.names import DRILL_ANNOTATION, DRILL_LABEL, HARD_TAINT
from tests.image.build import IMAGE
from tests.image.kit import KIT
from tests.nodes.conftest import NAMESPACE, install, serves
from tests.nodes.simulated import Site, enter, simulated

PHASES = (
    ("objects applied", signal.SIGINT),
    (" deleted", signal.SIGTERM),
    ("marked Xid 74", signal.SIGTERM),
    ("tainted", signal.SIGINT),
    (" killed on ", signal.SIGTERM),
)


def main() -> int:
    if "--inside" not in sys.argv:
        enter("tests.nodes.interrupted", [])
    with (
        tempfile.TemporaryDirectory(prefix="gpu-health-agent-drill-") as folder,
        simulated(4, 8, {IMAGE: ["gpu-health-agent"], KIT: []}) as site,
    ):
        install(site, Path(folder), kernel_log=False)
        site.plane.wait("the agents are ready", lambda: all(serves(site, node) for node in site.nodes), 180)
        for line, number in PHASES:
            said = interrupt(site, line, number)
            assert "It ended early: it was interrupted" in said, said
            assert "NOT cleaned up" not in said, said
            assert left(site) == [], (line, said)
            print(f"{number.name} at {line!r}: nothing is left", flush=True)
    return 0


def interrupt(site: Site, line: str, number: signal.Signals) -> str:
    """What a drill said that got the signal, and once more a moment later, when it said the line."""
    command = [
        sys.executable,
        "-m",
        "agent",
        "drill",
        "--kubeconfig",
        str(site.plane.kubeconfig),
        "--yes",
        "--only=pod,node,training",
        "--image",
        KIT,
        "--shared-path",
        str(site.shared),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as drill:
        assert drill.stdout is not None
        said = []
        for told in drill.stdout:
            said.append(told)
            if line in told:
                drill.send_signal(number)
                break
        else:
            raise AssertionError("".join(said))
        try:
            drill.wait(0.5)
        except subprocess.TimeoutExpired:
            drill.send_signal(number)  # who is impatient does not keep it from cleaning up
        said.append(drill.stdout.read())
    assert drill.returncode == 1, (drill.returncode, "".join(said))
    return "".join(said)


def left(site: Site) -> list[str]:
    """Everything of a drill that is still on the cluster."""
    get = site.plane.must
    nodes = get("GET", "/api/v1/nodes")["items"]
    pods = get("GET", f"/api/v1/namespaces/{NAMESPACE}/pods")["items"]
    spaces = get("GET", "/api/v1/namespaces")["items"]

    def name(one: Any) -> str:
        return str(one["metadata"]["name"])

    return [
        *(name(one) for one in nodes if DRILL_ANNOTATION in one["metadata"]["annotations"]),
        *(name(one) for one in nodes if any(t["key"] == HARD_TAINT for t in one["spec"].get("taints") or ())),
        *(name(one) for one in (*pods, *spaces) if DRILL_LABEL in (one["metadata"].get("labels") or {})),
    ]


if __name__ == "__main__":
    sys.exit(main())
