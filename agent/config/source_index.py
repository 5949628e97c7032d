"""Every source, in reading order. A source is its process and its row here; all others ask by role or by row.

The sources' own container reads this too, so nothing here may load the configuration's library.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum, auto
from pathlib import Path
from typing import TYPE_CHECKING

from agent.model.fault import Severity
from agent.model.observation import Observation, Signal

if TYPE_CHECKING:
    from agent.config.settings import Config


class Role(Enum):
    """What a source is to the judge. Each role but ``OTHER`` has one source."""

    GPUS = auto()  # the first witness of GPUs: whether they are there, and what they read
    KERNEL_LOG = auto()
    SECOND_WITNESS = auto()  # says what the first says as well, later, and nobody is blind without it
    TRACE = auto()  # confirms what the kernel log tells, or vetoes it; nobody is blind without it
    OTHER = auto()  # its silence makes the agent blind


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of the time before: up to where the kernel log was taken in, and the node's GPUs."""

    boot_id: str = ""
    seq: int | None = None
    gpus: frozenset[str] = frozenset()  # PCI addresses, of those that are gone too
    left_out: tuple[str, ...] = ()  # the addresses of those at which earlier processes of the same source hung

    def after(self, observation: Observation) -> Known:
        """What is known once this was taken in; each boot counts its records anew."""
        if observation.signal is Signal.READING and observation.source == GPUS and observation.pci not in self.gpus:
            return replace(self, gpus=self.gpus | {observation.pci})
        if observation.source != KERNEL_LOG or observation.past:  # what is past is whole with the first heartbeat
            return self
        boot_id = observation.boot_id or self.boot_id
        seq = self.seq if boot_id == self.boot_id else None
        if observation.seq is not None and (
            seq is None or (observation.signal is not Signal.ALIVE and observation.seq > seq)
        ):
            seq = observation.seq
        return replace(self, boot_id=boot_id, seq=seq)


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One source."""

    name: str  # as its lines, metrics and settings have it
    module: str  # its process
    silence: Severity  # of the fault that its silence becomes
    options: Callable[[Config, Path | None], list[str] | None]
    """Of its process, by the configuration and the folder of simulated GPUs, if there is one; None: not asked for."""
    role: Role = Role.OTHER
    stand_in: str = ""  # the module that is its process over simulated GPUs; empty: the same
    past: Callable[[Known], list[str]] = lambda _: []  # more options: what of the time before it goes on from
    holds_gpus: bool = False  # it keeps a GPU from being reset
    least_hung_s: float = 0.0  # at least so long it may say nothing before its process is ended

    @property
    def silent(self) -> str:
        """The rule that its silence breaks."""
        return f"{self.name}-silent"


def hold_gpus(names: Iterable[str]) -> frozenset[str]:
    """Those of these sources that keep a GPU from being reset."""
    return frozenset(name for name in names if SOURCES[name].holds_gpus)


def _nvml(config: Config, simulation: Path | None) -> list[str] | None:
    poll = ["--poll-s", str(config.poll_s)]
    if simulation is not None:
        return ["--scenario", config.sources.simulated.scenario or "idle", "--dir", str(simulation), *poll]
    return poll if config.sources.nvml.enabled else None


def _kmsg(config: Config, simulation: Path | None) -> list[str] | None:
    kmsg = config.sources.kmsg
    if not kmsg.enabled:
        return None
    path = kmsg.path if simulation is None or not config.sources.simulated.kernel_log else simulation / "kmsg"
    boot = [] if simulation is None else ["--boot-id-file", str(simulation / "boot_id")]
    userspace = ["--accept-userspace"] if kmsg.accept_userspace else []
    return ["--path", str(path), *boot, "--heartbeat-s", str(config.poll_s), *userspace]


def _dcgm(config: Config, simulation: Path | None) -> list[str] | None:
    dcgm = config.sources.dcgm
    elsewhere = simulation is not None and dcgm.address == "auto"  # an engine here has this machine's GPUs
    return as_options(dcgm.model_dump(exclude={"enabled"})) if dcgm.enabled and not elsewhere else None


def _trace(config: Config, simulation: Path | None) -> list[str] | None:
    trace = config.sources.trace
    elsewhere = simulation is not None and trace.path.is_dir()  # tracefs here has this machine's GPUs
    return ["--path", str(trace.path)] if trace.enabled and not elsewhere else None


def as_options(facts: Mapping[str, object]) -> list[str]:
    """Settings as the options of a command line; one that is unset is left out."""
    given = {name.replace("_", "-"): str(value) for name, value in facts.items() if value is not None}
    return [word for name, value in given.items() for word in (f"--{name}", value)]


def _position(known: Known) -> list[str]:
    return [] if known.seq is None else ["--after-boot-id", known.boot_id, "--after-seq", str(known.seq)]


def _gpus(known: Known) -> list[str]:
    return ["--known", *sorted(known.gpus), *(["--leave-out", *known.left_out] if known.left_out else [])]


SOURCES: Mapping[str, SourceRow] = {
    row.name: row
    for row in (
        SourceRow(
            name="nvml",
            module="agent.sources.nvml",
            silence=Severity.DEGRADED,
            options=_nvml,
            role=Role.GPUS,
            stand_in="agent.simulation.simulated",
            past=_gpus,
            holds_gpus=True,
        ),
        SourceRow(
            name="kmsg",
            module="agent.sources.kmsg",
            silence=Severity.DEGRADED,
            options=_kmsg,
            role=Role.KERNEL_LOG,
            past=_position,
        ),
        SourceRow(
            name="dcgm",
            module="agent.sources.dcgm",
            silence=Severity.NOTICE,
            options=_dcgm,
            role=Role.SECOND_WITNESS,
            holds_gpus=True,  # an embedded engine does
            least_hung_s=120.0,  # engines were seen to need 45 s for an answer, in a storm of correctable errors
        ),
        SourceRow(name="trace", module="agent.sources.trace", silence=Severity.NOTICE, options=_trace, role=Role.TRACE),
    )
}


def _the(role: Role) -> str:
    (name,) = (row.name for row in SOURCES.values() if row.role is role)
    return name


GPUS, KERNEL_LOG, SECOND_WITNESS = _the(Role.GPUS), _the(Role.KERNEL_LOG), _the(Role.SECOND_WITNESS)
TRACE = _the(Role.TRACE)
SPARE = frozenset({SECOND_WITNESS, TRACE})  # without which nobody is blind
