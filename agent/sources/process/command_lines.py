"""Which sources a configuration asks for, and the command line of each."""

from __future__ import annotations

import sys
from pathlib import Path

from agent.config.settings import Config
from agent.config.source_index import SOURCES, SourceRow, as_options
from agent.model.errors import ConfigError
from agent.sources.kubelet import pods_api
from agent.sources.kubelet.pod_resources import command_line
from agent.sources.process.supervisor import Supervisor

_HUNG_POLLS = 12  # a source that said nothing for so many polls is ended: 60 s at the default poll


def supervisor(config: Config, simulation: Path | None = None) -> Supervisor:
    """Of all the sources; ``simulation`` is the folder of simulated GPUs."""
    if simulation is not None:
        (simulation / "kmsg").touch()  # the kernel log's source may be quicker than the simulation
    return Supervisor(commands(config, simulation), hung_s(config), pods(config), diagnosis(config), runs(config))


def hung_s(config: Config) -> float:
    """How long a source may say nothing."""
    return max(30.0, _HUNG_POLLS * config.poll_s)


def names(config: Config) -> tuple[str, ...]:
    return tuple(commands(config, Path() if config.sources.simulated.scenario else None))


def commands(config: Config, simulation: Path | None) -> dict[str, list[str]]:
    """The command line of each source; ConfigError where none is left."""
    asked = ((row, row.options(config, simulation)) for row in SOURCES.values())
    found = {row.name: [*_python(row, simulation), *options] for row, options in asked if options is not None}
    if not found:
        every = ", ".join(f"sources.{name}.enabled" for name in SOURCES)
        raise ConfigError(f"sources: none is enabled, so nothing would be seen: set one of {every} to true")
    return found


def _python(row: SourceRow, simulation: Path | None) -> list[str]:
    return [sys.executable, "-m", row.module if simulation is None else row.stand_in or row.module]


def pods(config: Config) -> list[str]:
    """The command line that asks the kubelet which pod holds which GPU."""
    return command_line(config.sources.pods.socket, config.drain.resource_prefixes)


def runs(config: Config) -> list[str]:
    """And how they are; empty where that is not to be asked."""
    return pods_api.command_line(config.sources.pods.pods_api)


def diagnosis(config: Config) -> list[str]:
    """The command line of a diagnosis by the engine that the source reads, but for its level and GPUs."""
    engine = config.sources.dcgm.model_dump(include={"address", "bindings", "library"})
    return [sys.executable, "-m", "agent.sources.dcgm.diag", "--asked", *as_options(engine)]
