"""``make drill``: four nodes on this machine, the agent on them as shipped, and ``gpu-health-agent drill``.

Real nodes as root; else, and with ``NODES=simulated``, simulated ones whose pods are processes.
"""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from agent.commands.evidence import archive
from agent.recording.flight import kept
from tests.image.build import IMAGE, images
from tests.image.kit import KIT, kit_image
from tests.kit.with_torch import installed
from tests.nodes.conftest import install, serves
from tests.nodes.rig import Rig, rig
from tests.nodes.simulated import Site, enter, simulated
from tests.recording.decided import decided_anew

_BUILD = Path(__file__).parents[2] / "build"
_NODES = 4
_RANKS = "localhost/gpu-kit-torch:test"  # of simulated nodes: the kit's with PyTorch, where that is installed


@contextlib.contextmanager
def nodes(kind: str) -> Iterator[Rig | Site]:
    if kind == "simulated":
        programs = {_RANKS: torch.parent} if (torch := installed()) else {}
        with simulated(_NODES, 8, {IMAGE: ["gpu-health-agent"], KIT: [], _RANKS: []}, programs) as site:
            yield site
    else:
        with rig(_NODES, images=(*images(), kit_image()), names=True) as made:
            yield made


def main() -> int:
    options = sys.argv[1:]  # passed on to the drill
    inside = "--inside" in options  # of the namespaces that a simulation makes, where everybody is root
    kind = os.environ.get("NODES") or ("simulated" if inside or os.getuid() else "real")
    if kind == "simulated" and not inside:
        enter("tests.nodes.drill", options)
    options = [word for word in options if word != "--inside"]
    torch = kind == "simulated" and installed()
    if not torch:
        print(
            "without a training of many ranks: that takes simulated nodes, and PyTorch, which make kit-torch installs"
        )
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="gpu-health-agent-drill-") as folder, nodes(kind) as made:
        began = time.monotonic()
        install(made, Path(folder), kernel_log="--inject" in options)
        made.plane.wait("the agents are ready", lambda: all(serves(made, node) for node in made.nodes), 180)
        ready = time.monotonic()
        print(
            f"four {kind} nodes after {began - begun:.0f} s, an agent on each {ready - began:.0f} s later", flush=True
        )
        checkpoints = made.shared / "checkpoints"
        checkpoints.mkdir()
        checkpoints.chmod(0o777)
        _BUILD.mkdir(exist_ok=True)
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "agent",
                "drill",
                "--kubeconfig",
                str(made.plane.kubeconfig),
                "--yes",
                "--image",
                KIT,
                "--shared-path",
                str(checkpoints),
                "--json",
                str(_BUILD / "drill.json"),
                "--html",
                str(_BUILD / "drill.html"),
                *(["--ranks-image", _RANKS] if torch else []),
                *options,
            ]
        )
        replays = isinstance(made, Rig) or _replays(made, whole=not any(word.startswith("--only") for word in options))
        if done.returncode:
            print(made.plane.kubectl("get", "pods,events", "--all-namespaces", "--output=wide"))
        if done.returncode and kind == "real":
            agents = "--namespace=gpu-health-agent", "--selector=app.kubernetes.io/name=gpu-health-agent"
            print(made.plane.kubectl("logs", *agents, "--all-containers", "--prefix", "--tail=200"))
    print(f"{_BUILD / 'drill.html'} tells it with a picture; {time.monotonic() - begun:.0f} s in all")
    return done.returncode or int(not replays)


def _replays(site: Site, whole: bool) -> bool:
    """Whether what the agents kept of the drill, as archives, is decided anew as they decided it.

    A ``whole`` drill withdraws a node, and then something must have been kept.
    """
    decided, drilled = 0, 0
    for folder in sorted(site.folder.glob("pods/*/volumes/evidence")):
        if recordings := kept(folder):
            archive(out := io.BytesIO(), None, recordings, pods=False)
            try:
                found = decided_anew(out.getvalue())
            except AssertionError as error:
                print(f"what an agent kept of the drill is decided otherwise in a replay: {error}")
                return False
            decided += len(found)
            drilled += any(fault["id"].endswith("/drill") for one in found for fault in one["faults"])
    print(f"what the agents kept of the drill, replayed: {decided} decisions, {drilled} nodes withdrawn, all the same")
    return drilled > 0 or not whole


if __name__ == "__main__":
    try:
        sys.exit(main())
    except RuntimeError as error:
        sys.exit(f"make drill: {error}")
