"""What several commands begin with: the configuration, the client of a cluster, a file, a simulation's folder."""

from __future__ import annotations

import argparse
import gzip
import os
import signal
import threading
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BufferedReader, TextIOWrapper
from itertools import count
from pathlib import Path
from typing import TextIO

from agent.config.config_file import load
from agent.config.settings import Config
from agent.model.cluster_client import ClusterClient
from agent.model.errors import ConfigError, UnreadableError, UsageError
from agent.simulation.folder import simulation_directory

DAMAGE = (EOFError, gzip.BadGzipFile, zlib.error)
_LONGEST_LINE = 16 << 20  # characters; what a Node and its pods hold is a thirtieth of it


def configured(path: str | None) -> Config:
    """The configuration file, its overrides checked against the rules that there are."""
    from agent.diagnosis.effective import wrong_override

    config = load(path)
    if wrong := wrong_override(config.policy):
        raise ConfigError(f"{path}: {wrong}")
    return config


def persons(kubeconfig: str | None) -> str | None:
    """A person's credentials as kubectl finds them: the file that is named, $KUBECONFIG, ~/.kube/config.

    None where there is none of them: then those of the pod. The agent never asks so.
    """
    if kubeconfig:
        return kubeconfig
    if exported := os.environ.get("KUBECONFIG"):
        return exported
    default = Path.home() / ".kube" / "config"
    return str(default) if default.is_file() else None


def client(kubeconfig: str | None, node: str, config: Config) -> ClusterClient:
    """Credentials from a kubeconfig file, else from the pod's service account."""
    from agent.actions.api import connect
    from agent.actions.kube import KubeClient

    return KubeClient(connect(kubeconfig), node, config)


@contextmanager
def opened(path: Path) -> Iterator[BufferedReader]:
    """What was named on the command line; UsageError if it can't be read."""
    try:
        stream = path.open("rb")
    except OSError as error:
        raise UsageError(f"{path}: can't be read ({error.strerror}): name another file") from error
    with stream:
        yield stream


def as_text(stream: BufferedReader) -> TextIOWrapper:
    """A text of any bytes, gzip or plain."""
    return TextIOWrapper(plain(stream), encoding="utf-8", errors="replace")


def plain(stream: BufferedReader) -> BufferedReader:
    """Without its gzip, if it has one."""
    return stream if stream.peek(2)[:2] != b"\x1f\x8b" else BufferedReader(gzip.GzipFile(fileobj=stream))


def undamaged(lines: Iterable[str]) -> Iterator[str]:
    """The same lines; UnreadableError where a gzip is damaged or ends too early."""
    try:
        yield from lines
    except DAMAGE as error:
        raise damaged(error) from error


def damaged(error: Exception) -> UnreadableError:
    return UnreadableError(f"the file is damaged or cut off ({error}): copy it anew")


def lines_of(text: TextIO) -> Iterator[str]:
    """The lines of a recording or a log; UsageError for one that is longer than any that an agent writes."""
    for number in count(1):
        line = text.readline(_LONGEST_LINE + 1)
        if not line:
            return
        if len(line) > _LONGEST_LINE:
            raise UsageError(f"line {number}: longer than {_LONGEST_LINE >> 20} MiB, as no line of a recording is")
        yield line


def simulated(arguments: argparse.Namespace, config: Config) -> tuple[Config, Path | None]:
    """The configuration with simulated GPUs, if any; an unknown scenario is said before anything starts."""
    scenario = arguments.simulate or config.sources.simulated.scenario
    if not scenario:
        return config, None
    # What simulates loads NVML's binding: 2 MB that an agent on real GPUs, with its sources elsewhere, has no use for.
    from agent.simulation.scenario import load_scenario

    load_scenario(scenario)
    held = config.sources.pods.socket.is_socket()  # by nobody, unless a kubelet is there to be asked
    update = {
        "simulated": config.sources.simulated.model_copy(update={"scenario": scenario}),
        "pods": config.sources.pods.model_copy(update={"enabled": config.sources.pods.enabled and held}),
    }
    sources = config.sources.model_copy(update=update)
    return config.model_copy(update={"sources": sources}), private(arguments.simulation_dir)


def private(directory: Path) -> Path:
    """A folder that nobody else may write to: whoever can, can inject faults. UsageError, ConfigError."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"--simulation-dir: {directory} can't be made ({error.strerror}); name another folder"
        ) from error
    if directory.stat().st_uid != os.getuid() or directory.is_symlink():
        raise ConfigError(f"--simulation-dir: {directory} belongs to somebody else; name another folder")
    return directory


def add_directory(parser: argparse.ArgumentParser) -> None:
    default, what = simulation_directory(), "the simulated machine's folder"
    parser.add_argument("--simulation-dir", type=Path, default=default, metavar="D", help=what)


def add_logging(parser: argparse.ArgumentParser) -> None:
    levels, forms = ("debug", "info", "warning", "error"), ("console", "json")
    parser.add_argument("--log-level", choices=levels, default="info", help="log nothing below this (default: info)")
    parser.add_argument("--log-format", choices=forms, help="default: console on a terminal, json elsewhere")


def stop_on_signals() -> threading.Event:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop
