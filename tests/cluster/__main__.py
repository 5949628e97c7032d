"""``make cluster``: leaves a control plane with four GPU nodes running for a person to play with."""

from __future__ import annotations

import signal
import sys
import tempfile
import threading
from pathlib import Path

from tests.cluster.build import assets
from tests.cluster.control_plane import ControlPlane


def main() -> int:
    programs = assets()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with tempfile.TemporaryDirectory(prefix="gpu-health-agent-cluster-") as folder:
        plane = ControlPlane(Path(folder), programs)
        plane.up(nodes=4)
        try:
            print(
                f"""
four nodes, node-0 to node-3, with 8 simulated GPUs each. Try, in another terminal:

  {programs}/kubectl --kubeconfig={plane.kubeconfig} get nodes
  make run REAL_KUBECONFIG={plane.kubeconfig} NODE=node-0

Ctrl-C ends the cluster and forgets it.""",
                flush=True,
            )
            stop.wait()
        finally:
            plane.down()
    return 0


if __name__ == "__main__":
    sys.exit(main())
