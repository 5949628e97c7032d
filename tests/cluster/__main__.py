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
            plane.toolkit()
            print(
                f"""
four nodes, node-0 to node-3, with 8 simulated GPUs each. No pod really runs on them: start the agent by hand.
In another terminal, once:

  export KUBECONFIG={plane.kubeconfig}
  export PATH={Path(sys.executable).parent}:{programs}:$PATH

The whole story on node-0; and on node-1 an agent that only observes, and a fault:

  make run REAL_KUBECONFIG=$KUBECONFIG NODE=node-0
  gpu-health-agent run --kubeconfig $KUBECONFIG --node node-1 --simulate idle &
  gpu-health-agent inject --gpu 3 --xid 79
  gpu-health-agent explain
  kubectl gpu-health

Ctrl-C ends the cluster and forgets it.""",
                flush=True,
            )
            stop.wait()
        finally:
            plane.down()
    return 0


if __name__ == "__main__":
    sys.exit(main())
