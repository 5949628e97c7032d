"""Which sources a configuration asks for, and the command line of each."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from agent.config.settings import Config
from agent.sources.process.supervisor import Supervisor

_HUNG_POLLS = 12  # a source that said nothing for so many polls is ended: 60 s at the default poll


def supervisor(config: Config, simulation: Path | None = None) -> Supervisor:
    """Of all the sources; ``simulation`` is the folder of simulated GPUs."""
    if simulation is not None:
        (simulation / "kmsg").touch()  # the kernel log's source may be quicker than the simulation
    return Supervisor(commands(config, simulation), hung_s(config), config.sources.pods.socket, diagnosis(config))


def hung_s(config: Config) -> float:
    """How long a source may say nothing."""
    return max(30.0, _HUNG_POLLS * config.poll_s)


def names(config: Config) -> tuple[str, ...]:
    return tuple(commands(config, Path() if config.sources.simulated.scenario else None))


def commands(config: Config, simulation: Path | None) -> dict[str, list[str]]:
    """By source."""
    sources, poll = config.sources, ["--poll-s", str(config.poll_s)]
    python = [sys.executable, "-m"]
    found: dict[str, list[str]] = {}
    if simulation is not None:
        scenario = ["--scenario", sources.simulated.scenario or "idle", "--dir", str(simulation)]
        found["nvml"] = [*python, "agent.simulation.simulated", *scenario, *poll]
    elif sources.nvml.enabled:
        found["nvml"] = [*python, "agent.sources.nvml", *poll]
    if sources.kmsg.enabled:
        path = sources.kmsg.path if simulation is None or not sources.simulated.kernel_log else simulation / "kmsg"
        boot = [] if simulation is None else ["--boot-id-file", str(simulation / "boot_id")]
        userspace = ["--accept-userspace"] if sources.kmsg.accept_userspace else []
        beat = ["--heartbeat-s", str(config.poll_s)]
        found["kmsg"] = [*python, "agent.sources.kmsg", "--path", str(path), *boot, *beat, *userspace]
    dcgm = sources.dcgm
    if dcgm.enabled and (simulation is None or dcgm.address != "auto"):  # an engine here has this machine's GPUs
        found["dcgm"] = [*python, "agent.sources.dcgm", *_options(dcgm.model_dump(exclude={"enabled"}))]
    return found


def diagnosis(config: Config) -> list[str]:
    """The command line of a diagnosis by the engine that the source reads, but for its level and GPUs."""
    engine = config.sources.dcgm.model_dump(include={"address", "bindings", "library"})
    return [sys.executable, "-m", "agent.sources.dcgm.diag", "--asked", *_options(engine)]


def _options(facts: Mapping[str, object]) -> list[str]:
    given = {name.replace("_", "-"): str(value) for name, value in facts.items() if value is not None}
    return [word for name, value in given.items() for word in (f"--{name}", value)]
