"""One Config from one YAML file; an error names the field and the fix."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError


class ConfigError(Exception):
    """One sentence for a person; the command ends with exit code 78 (sysexits EX_CONFIG)."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[str, Field(pattern=r"^(100|[1-9]?[0-9])%$")]
Count = Annotated[int, Field(ge=0)]


class Mode(StrEnum):
    """What the agent may do; each mode includes the one before."""

    OBSERVE = "observe"  # conditions, labels, Events
    TAINT = "taint"  # the taints too
    EVICT = "evict"  # evictions too


class NvmlSource(_Section):
    enabled: bool = True


class KmsgSource(_Section):
    enabled: bool = True
    path: Path = Path("/dev/kmsg")
    accept_userspace: bool = False
    """Believe records that user space wrote into the kernel log. For rehearsals on a test cluster only:
    with it on, whoever may write to /dev/kmsg can drain the node."""


class SimulatedSource(_Section):
    scenario: str | None = None
    """A scenario's name or file: simulated GPUs stand in for NVML. Off by default."""


class Sources(_Section):
    nvml: NvmlSource = NvmlSource()
    kmsg: KmsgSource = KmsgSource()
    simulated: SimulatedSource = SimulatedSource()


class Limits(_Section):
    """The thresholds of the rules; durations in seconds, temperatures in °C."""

    silent_s: Seconds = 60
    """A source that said nothing for this long is blind (and for three times as long, degraded)."""
    missing_confirm_s: Seconds = 60
    """How long a GPU must be missing from NVML's enumeration: driver roll-outs pass sooner."""
    temperature_confirm_s: Seconds = 60
    temperature_clear_s: Seconds = 600
    temperature_hysteresis_c: Annotated[float, Field(ge=0)] = 3
    flag_confirm_s: Seconds = 3
    """For flags that NVML reads at each poll (recovery action, remap failure): two reads this far apart."""
    notice_clear_s: Seconds = 600
    degraded_xid_clear_s: Seconds = 3600
    xid_count_window_s: Seconds = 3600
    """Xid 109 is a notice, and degraded at two in this window."""
    soak_s: Seconds = 600
    """How long a cured GPU must stay well before the node returns to service."""
    expected_gpus: Count | None = None
    """How many GPUs the node must have; unset: as many as were seen since the agent's start."""


class Budget(_Section):
    """How much of the cluster may be out of service at once through our doing."""

    max_withdrawn: Annotated[int, Field(ge=0)] | Share = "10%"
    """Nodes of the pool with our hard taint, a number or a share of the pool (at least 1)."""
    max_draining: Annotated[int, Field(ge=0)] | Share = 1
    per_hour: Count = 0
    """Withdrawals an hour for the whole pool; 0 is no limit beyond max_withdrawn."""
    pool: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,30}[a-z0-9])?$")] = "gpu"
    """The pool's name in the Leases that hold its slots."""
    pool_selector: str = "nvidia.com/gpu.present=true"
    """The label selector of the pool's nodes."""
    namespace: str = "gpu-health-agent"


class Drain(_Section):
    gather_s: Seconds = 10
    """From the taint to the first eviction: a node's faults are gathered, so that a gang restarts once."""
    exclude_namespaces: tuple[str, ...] = ("kube-system",)
    resource_prefixes: tuple[str, ...] = ("nvidia.com/",)
    """A pod that requests an extended resource with one of these prefixes holds a GPU."""


class Http(_Section):
    address: str = ""
    """Where /metrics listens; empty: every address of the pod, IPv4 and IPv6."""
    port: Annotated[int, Field(ge=0, le=65535)] = 9836


class Config(_Section):
    mode: Mode = Mode.OBSERVE
    node: str | None = None
    """The Node object to write to; unset: the environment's NODE_NAME."""
    poll_s: Annotated[float, Field(gt=0, le=300)] = 5
    sources: Sources = Sources()
    policy: Limits = Limits()
    budget: Budget = Budget()
    drain: Drain = Drain()
    http: Http = Http()


def load(path: str | os.PathLike[str] | None) -> Config:
    """Read the configuration file; no file is the default configuration."""
    if path is None:
        return Config()
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: can't be read ({error.strerror}): name an existing file with --config") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not valid YAML: {str(error).splitlines()[0]}") from error
    if data is not None and not isinstance(data, dict):
        raise ConfigError(f"{path}: must hold a mapping such as 'mode: observe', not a {type(data).__name__}")
    try:
        return Config.model_validate(data or {})
    except ValidationError as error:
        raise ConfigError(f"{path}: {_sentence(error)}") from error


def _sentence(error: ValidationError) -> str:
    """The first error only: one is enough to mend, and the next run names the next."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"] if not str(part).startswith(("constrained-", "function-")))
    if first["type"] == "extra_forbidden":
        return f"{field}: no such setting{_nearest(first['loc'])}"
    return f"{field}: {first['msg']}, not {first['input']!r}"[:300]


def _nearest(loc: tuple[int | str, ...]) -> str:
    from difflib import get_close_matches

    section: type[BaseModel] = Config
    for part in loc[:-1]:
        annotation = section.model_fields[str(part)].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return ""
        section = annotation
    known = list(section.model_fields)
    near = get_close_matches(str(loc[-1]), known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; known here: {', '.join(known)}"
