"""``evidence``: what was seen before and after the last fatal faults, for a vendor's case, as one archive.

It reads the flight recorder's folder and asks the agent that runs here. Nothing of it goes over the open port.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import sys
import tarfile
import time
from collections.abc import Iterable, Iterator
from io import BufferedReader, TextIOWrapper
from pathlib import Path
from typing import Any, BinaryIO

from agent import __version__
from agent.commands.setup import DAMAGE, as_text, configured, damaged, plain
from agent.model.errors import NotRunningError, UnreadableError, UsageError
from agent.model.text import printable, read_json
from agent.recording.flight import SUFFIX, ask, kept
from agent.status.client import running
from agent.status.ledger_view import as_table

EXAMPLES = (
    ("gpu-health-agent evidence", "to standard output: in the pod, by kubectl exec without -t"),
    ("gpu-health-agent evidence --output evidence.tar.gz", "to a file"),
    ("gpu-health-agent evidence --freeze --output now.tar.gz", "with the last minutes, whatever stands"),
)
_RECORDINGS = "recordings/"
_MOST_BYTES = 64 << 20  # of a recording in an archive, compressed as it is; an agent's have one or two MiB
_BLOCK, _MAGIC = 512, slice(257, 262)
_OF_THE_STATE = ("node", "version", "mode", "at", "status", "faults", "blind", "cards", "gpus", "xids", "sources")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="F", help="the agent's own file, for its folder and port")
    parser.add_argument("--output", type=Path, metavar="F", help="the archive (default: standard output)")
    parser.add_argument("--freeze", action="store_true", help="let the agent write down the last minutes first")
    parser.add_argument("--pods", action="store_true", help="with the names of pods, and what was planned for them")


def run(arguments: argparse.Namespace) -> int:
    config = configured(arguments.config)
    if arguments.output is None and sys.stdout.isatty():
        raise UsageError("standard output is a terminal: name a file with --output")
    if arguments.freeze:
        ask(config.evidence.folder)
    state = running(config)
    recordings = kept(config.evidence.folder)
    if state is None and not recordings:
        raise NotRunningError(f"no agent answers here, and no recording lies in {config.evidence.folder}")
    if arguments.output:
        with arguments.output.open("wb") as out:
            archive(out, state, recordings, arguments.pods)
    else:
        archive(sys.stdout.buffer, state, recordings, arguments.pods)
    return 0


def archive(out: BinaryIO, state: dict[str, Any] | None, recordings: Iterable[Path], pods: bool) -> None:
    """``pods``: with the names of pods beyond what the Node says."""
    with tarfile.open(fileobj=out, mode="w|gz") as tar:
        _add(tar, "versions.txt", f"gpu-health-agent {__version__}\nPython {sys.version.split()[0]}\n".encode())
        if state:
            told = state if pods else {name: state[name] for name in _OF_THE_STATE if name in state}
            _add(tar, "state.json", json.dumps(told, indent=2).encode())
            incidents = state.get("incidents", [])
            _add(tar, "incidents.json", json.dumps(incidents, indent=2).encode())
            _add(tar, "incidents.txt", as_table([(state.get("node") or "", incidents)]).encode())
        for path in recordings:
            name = path.name.removesuffix(SUFFIX)
            with path.open("rb") as stream:
                lines = [*as_text(stream)]
            kept_lines = lines if pods else [*without_pods(lines)]
            _add(tar, f"{_RECORDINGS}{path.name}", gzip.compress("".join(kept_lines).encode()))
            _add(tar, f"kernel/{name}.txt", "".join(f"{line}\n" for line in kernel_lines(lines)).encode())


def texts(stream: BufferedReader) -> Iterator[tuple[str, TextIOWrapper]]:
    """The recordings of an archive of this kind, by name; else the one text that it is, which has none."""
    file, found = plain(stream), False
    try:
        if file.peek(_BLOCK)[_MAGIC] != b"ustar":
            yield "", as_text(file)
            return
        with tarfile.open(fileobj=file, mode="r|") as tar:
            for member in tar:
                if member.name.startswith(_RECORDINGS) and (part := tar.extractfile(member)):
                    found = True
                    yield printable(member.name), as_text(BufferedReader(io.BytesIO(part.read(_MOST_BYTES))))
    except (*DAMAGE, tarfile.TarError) as error:
        raise damaged(error) from error
    if not found:
        raise UnreadableError("no recording is in the archive: the agent kept none, or 'evidence' did not make it")


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mtime, member.mode = len(data), int(time.time()), 0o600
    tar.addfile(member, io.BytesIO(data))


def without_pods(lines: Iterable[str]) -> Iterator[str]:
    """A recording without its plans, and with workloads as numbers: what it judges by stays."""
    numbers: dict[str, str] = {}
    for line in lines:
        data = read_json(line)
        if "plan" in data or data.get("decision", {}).get("steps"):
            continue
        if orders := data.get("orders"):
            whose = orders["workloads"]
            orders["workloads"] = {
                uid: numbers.setdefault(one, f"workload-{len(numbers)}") for uid, one in whose.items()
            }
        yield json.dumps(data, separators=(",", ":")) + "\n"


def kernel_lines(lines: Iterable[str]) -> Iterator[str]:
    """The kernel's own words, each on one line."""
    for line in lines:
        for one in read_json(line).get("seen", ()):
            if isinstance(one, dict) and one.get("source") in ("kmsg", "trace") and one.get("raw"):
                yield f"{one['at']:.3f} {printable(one['raw'])}"
