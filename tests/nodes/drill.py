"""``make drill``: four real nodes on this machine, the agent on them as shipped, and ``gpu-health-agent drill``."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.image.build import images
from tests.image.kit import KIT, kit_image
from tests.nodes.conftest import install, serves
from tests.nodes.rig import rig

_BUILD = Path(__file__).parents[2] / "build"


def main() -> int:
    if os.getuid():
        print("make drill needs root on Debian 12: its nodes are real, made of namespaces, mounts and cgroups.\n"
              "On a cluster that is there: gpu-health-agent drill --kubeconfig F", file=sys.stderr)  # fmt: skip
        return 1
    archives = (*images(), kit_image())
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="gpu-health-agent-drill-") as folder,
        rig(4, images=archives, names=True) as made,
    ):
        install(made, Path(folder), kernel_log=False)
        made.plane.wait("the agents are ready", lambda: all(serves(made, node) for node in made.nodes), 180)
        print(f"four real nodes with an agent each, after {time.monotonic() - began:.0f} s", flush=True)
        checkpoints = made.shared / "checkpoints"
        checkpoints.mkdir()
        checkpoints.chmod(0o777)
        _BUILD.mkdir(exist_ok=True)
        done = subprocess.run([
            sys.executable, "-m", "agent", "drill", "--kubeconfig", str(made.plane.kubeconfig), "--yes",
            "--image", KIT, "--shared-path", str(checkpoints),
            "--json", str(_BUILD / "drill.json"), "--html", str(_BUILD / "drill.html"),
        ])  # fmt: skip
        if done.returncode:
            print(made.plane.kubectl("get", "pods,events", "--all-namespaces", "--output=wide"))
    print(f"{_BUILD / 'drill.html'} tells it with a picture; {time.monotonic() - began:.0f} s in all")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
