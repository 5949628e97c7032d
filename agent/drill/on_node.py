"""A drill's program on a node: writes marked kernel records, or kills or stops one pod's processes.

In a short-lived pod, or where the agent's GPUs are simulated in the container of its sources.

Prints one JSON object, and leaves it where the kubelet finds a container's last words.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path

from agent.model.errors import UnaskedError
from agent.model.names import DRILL_ANNOTATION
from agent.simulation.folder import simulation_directory
from agent.sources.kubelet.pod_resources import PodResources, command_line
from agent.sources.nvml.pod_of_process import PROC, pod_of

XID = 74  # fatal, and for a person: pods leave, and nothing is repaired
_PAUSE_S = 1.1  # the kernel takes few records of user space in a second


def record(pci: str, nonce: str) -> str:
    """In the form of NVIDIA's driver, which names no function."""
    return f"NVRM: Xid (PCI:{pci.rpartition('.')[0]}): {XID}, {DRILL_ANNOTATION}={nonce}\n"


def addresses(pods: list[str], cards: dict[str, str], kubelet: Path) -> list[str]:
    """The PCI addresses of the GPUs that these pods hold; where the kubelet can't be asked, the first of the node.

    The agent can't ask it either then, and moves every pod that may hold a GPU.
    """
    try:
        held = PodResources(command_line(kubelet)).who_holds()
    except UnaskedError:
        held = {}
    uuids = [uuid for pod in pods for uuid in sorted(held.get(pod) or ())]
    return [cards[uuid] for uuid in uuids if uuid in cards] or sorted(cards.values())[:1]


def write(log: Path, found: list[str], nonce: str) -> list[dict[str, object]]:
    written: list[dict[str, object]] = []
    for pci in found:
        if written:
            time.sleep(_PAUSE_S)
        at = time.time()
        # Opened for each: the kernel counts what one open file writes.
        with log.open("w", encoding="ascii") as out:
            out.write(record(pci, nonce))
        written.append({"pci": pci, "at": at})
    return written


def simulate(directory: Path, found: list[str], nonce: str) -> list[dict[str, object]]:
    """The same into the kernel log of the simulation that runs in this folder."""
    from agent.simulation.simulated import inject

    written: list[dict[str, object]] = []
    for pci in found:
        written.append({"pci": pci, "at": time.time()})
        inject(directory, {"kernel": record(pci, nonce).rstrip()})
    return written


def strike(uid: str, number: signal.Signals, proc: Path = PROC) -> list[int]:
    """Every process of one pod gets the signal, but the one that holds its network."""
    found = [int(path.name) for path in proc.iterdir() if path.name.isdecimal()]
    pids = [pid for pid in found if pod_of(pid, proc) == uid and not _holds_network(proc / str(pid))]
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
    return pids


def _holds_network(process: Path) -> bool:
    """Kubernetes' pause; without it the pod would get another address, which no crash does."""
    try:
        return (process / "comm").read_text().strip() == "pause"
    except OSError:
        return False


def hang(uid: str, seconds: float, proc: Path = PROC) -> dict[str, object]:
    """They stand still and go on again; whoever ends this program early lets them go on as well."""
    at = time.time()
    try:
        pids = strike(uid, signal.SIGSTOP, proc)
        time.sleep(seconds)
    finally:
        strike(uid, signal.SIGCONT, proc)
    return {"at": at, "hung": pids, "on_at": time.time()}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m agent.drill.on_node", description=__doc__)
    parser.add_argument("--nonce", help="write a record that quotes it")
    parser.add_argument("--card", action="append", default=[], metavar="UUID=PCI", help="of this node")
    parser.add_argument("--pod", action="append", default=[], metavar="NAMESPACE/NAME", help="its GPUs are meant")
    parser.add_argument("--kill", metavar="UID", help="of the pod whose processes are killed")
    parser.add_argument("--hang", metavar="UID", help="of the pod whose processes are stopped for a while")
    parser.add_argument("--for-s", type=float, default=6.0, metavar="S", help="that while")
    parser.add_argument("--simulated", action="store_true", help="into the kernel log of simulated GPUs")
    parser.add_argument("--simulation-dir", type=Path, default=simulation_directory(), metavar="D")
    parser.add_argument("--log", type=Path, default=Path("/dev/kmsg"))
    parser.add_argument("--kubelet", type=Path, default=Path("/var/lib/kubelet/pod-resources/kubelet.sock"))
    parser.add_argument("--last-words", type=Path, default=Path("/dev/termination-log"))
    options = parser.parse_args()
    done: dict[str, object] = {}
    if options.nonce:
        cards = dict(str(card).split("=", 1) for card in options.card)
        found = addresses(options.pod, cards, options.kubelet)
        done["written"] = (
            simulate(options.simulation_dir, found, options.nonce)
            if options.simulated
            else write(options.log, found, options.nonce)
        )
    if options.kill:
        done |= {"at": time.time(), "killed": strike(options.kill, signal.SIGKILL)}
    if options.hang:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        done |= hang(options.hang, options.for_s)
    text = json.dumps(done)
    sys.stdout.write(text + "\n")
    with contextlib.suppress(OSError):
        options.last_words.write_text(text, encoding="ascii")
    return 0


if __name__ == "__main__":
    sys.exit(main())
