"""One Config from one YAML file; an error names the field and the fix."""

from __future__ import annotations

import os
import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from agent.model import Remedy


class ConfigError(Exception):
    """One sentence for a person; the command ends with exit code 78 (sysexits EX_CONFIG)."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[str, Field(pattern=r"^(100|[1-9]?[0-9])%$")]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, le=1)]


class Mode(StrEnum):
    """What the agent may do; each mode includes the one before."""

    OBSERVE = "observe"  # conditions, labels, Events
    TAINT = "taint"  # the taints too
    EVICT = "evict"  # evictions too


class NvmlSource(_Section):
    enabled: bool = True  # read the GPUs through NVML


class KmsgSource(_Section):
    enabled: bool = True  # read the kernel log
    path: Path = Path("/dev/kmsg")  # the kernel log, or a file of its form
    accept_userspace: bool = False
    """Believe records that user space wrote into the kernel log. For rehearsals on a test cluster only:
    with it on, whoever may write to /dev/kmsg can drain the node."""


class PodsSource(_Section):
    enabled: bool = True  # ask the kubelet; else every pod that may hold the GPU leaves
    socket: Path = Path("/var/lib/kubelet/pod-resources/kubelet.sock")
    """The kubelet's PodResources API: which pod holds which GPU, asked while pods leave a bad one."""


def _engine(address: str) -> str:
    if not re.fullmatch(r"auto|embedded|/.+|[^/\s]+:[0-9]{1,5}", address):
        raise ValueError("name host:port, a socket's path, auto or embedded")
    return address


class DcgmSource(_Section):
    enabled: bool = True  # DCGM as a second witness, where there is an engine
    address: Annotated[str, AfterValidator(_engine)] = "auto"
    """host:port or a unix socket's path. auto: 127.0.0.1:5555 if an engine answers there, else none. embedded: an
    engine of our own, which NVIDIA doesn't support beside another one (that of dcgm-exporter, say)."""
    bindings: Path | None = None  # the folder with pydcgm.py; unset: where NVIDIA's packages of DCGM 4 and 3 put it
    library: Path | None = None  # the folder with libdcgm.so; unset: LD_LIBRARY_PATH, then the system's
    poll_s: Annotated[float, Field(gt=0, le=60)] = 10
    """Between two readings of its fields; the engine reads them as often."""
    health_s: Annotated[float, Field(gt=0, le=600)] = 30
    """Between two health checks: each is over a megabyte, and judges the samples of a minute."""


class SimulatedSource(_Section):
    scenario: str | None = None  # A scenario's name or file: simulated GPUs stand in for NVML. Off by default.
    kernel_log: bool = True  # is simulated too; false: the machine's own, for a drill without GPUs


class Sources(_Section):
    nvml: NvmlSource = NvmlSource()
    kmsg: KmsgSource = KmsgSource()
    dcgm: DcgmSource = DcgmSource()
    pods: PodsSource = PodsSource()
    simulated: SimulatedSource = SimulatedSource()


class Override(_Section):
    """Another opinion on one rule, for all GPUs or those of a model or node label; a later one wins."""

    rule: str  # a name of the table of rules
    gpu_model: str | None = None
    """A pattern on NVML's product name: "*H100*"."""
    node_label: Annotated[str, Field(pattern=r"^[^=]+=.*$")] | None = None  # KEY=VALUE of the node
    disabled: bool = False  # the rule finds nothing
    severity: Literal["notice", "degraded", "fatal"] | None = None  # notice, degraded or fatal
    remedy: Remedy | None = None  # an action word
    count: Annotated[int, Field(ge=1, le=64)] | None = None
    window_s: Seconds = 3600
    """Xids only: below so many within the window it is a notice."""
    confirm_s: Seconds | None = None  # how long it must last before it counts
    clear_s: Seconds | Literal["latched"] | None = None
    """How long it must be gone, or "latched": only a proved cure ends it."""


class Limits(_Section):
    """The thresholds of the rules; durations in seconds, temperatures in °C."""

    overrides: tuple[Override, ...] = ()  # other opinions on single rules

    silent_s: Seconds = 60
    """A source that said nothing for this long is blind (and for three times as long, degraded)."""
    missing_confirm_s: Seconds = 60
    """How long a GPU must be missing from NVML's enumeration: driver roll-outs pass sooner."""
    temperature_confirm_s: Seconds = 60  # how long a GPU must be too hot before it counts
    temperature_clear_s: Seconds = 600  # and cool before that clears
    temperature_hysteresis_c: Annotated[float, Field(ge=0)] = 3  # °C below the limit that count as cool
    flag_confirm_s: Seconds = 3
    """For flags that NVML reads at each poll (recovery action, remap failure): two reads this far apart."""
    throttle_clear_s: Seconds = 600
    """How long clocks must be free of a slowdown (under 5 % of the time) before its fault clears."""
    hw_thermal_notice_share: Fraction = 0.1
    hw_thermal_degraded_share: Fraction = 0.5
    """Shares of the last 5 and 10 minutes under hardware thermal slowdown; single bursts are common."""
    sw_thermal_share: Fraction = 0.5
    power_brake_share: Fraction = 0.1
    """Shares of the last 15 minutes under software thermal slowdown, of the last 5 under the power brake."""
    rate_clear_s: Seconds = 1800
    """How long an error rate must stay under half its limit before its fault clears."""
    ecc_corrected_per_hour: Positive = 100
    """Correctable memory errors an hour, two hours running; correction is normal, no vendor gives a limit."""
    pcie_replays_per_minute: Positive | None = None
    """In 3 of 5 minutes a notice, at ten times as many degraded. Unset: DCGM's for the link (31 on gen. 5 x16)."""
    nvlink_errors_per_minute: Positive = 1
    """NVLink 4 and older: replays or recoveries, in 3 of 5 minutes."""
    nvlink_crc_per_second: Positive = 100  # NVLink 4 and older: checksum errors
    nvlink_ber: Annotated[float, Field(gt=0, lt=1)] = 1e-12
    """NVLink 5: the effective bit error rate above which the link is worth a look. No vendor limit is public."""
    link_confirm_s: Seconds = 10
    """Three polls for a link's width or state; the generation falls when idle and is never judged."""
    nvlink_down_fatal: bool = False
    """Whether a missing NVLink withdraws the node (training that uses all of them) or only degrades it."""
    fabric_confirm_s: Seconds = 600
    """How long the fabric may take to come up after a boot."""
    row_remaps_uncorrected: Count = 512  # as many as the table of remaps holds
    retired_pages: Count = 63
    retired_pages_dbe: Count = 15
    """NVIDIA's limits for replacement: pages in all, and pages by double-bit errors while new ones come."""
    driver_confirm_s: Seconds = 600
    """A driver roll-out unloads the driver for minutes: no fault before this."""
    app_window_s: Seconds = 86400
    app_workloads: Annotated[int, Field(ge=2)] = 3
    """So many distinct workloads that failed alike on one GPU within the window, and not elsewhere, suspect it."""
    relapse_window_s: Seconds = 86400
    relapses: Annotated[int, Field(ge=2)] = 3
    """A GPU that turned fatal so often within the window waits for a person."""
    notice_clear_s: Seconds = 600  # how long a notice stands after its last event
    degraded_xid_clear_s: Seconds = 3600  # and an Xid that degrades
    xid_count_window_s: Seconds = 3600
    """Xid 109 is a notice, and degraded at two in this window."""
    dcgm_clear_s: Seconds = 600
    """How long DCGM's health must no longer report an incident before its fault clears."""
    disagreement_confirm_s: Seconds = 300
    """How long DCGM and NVML must read a quantity differently before it is a notice: each has its own rhythm."""
    soak_s: Seconds = 600
    """How long a cured GPU must stay well before the node returns to service."""
    expected_gpus: Count | None = None
    """How many GPUs the node must have; unset: as many as were seen since the agent's start."""


class Budget(_Section):
    """How much of the cluster may be out of service at once through our doing."""

    max_withdrawn: Annotated[int, Field(ge=0)] | Share = "10%"
    """Nodes of the pool with our hard taint, a number or a share of the pool (at least 1)."""
    max_draining: Annotated[int, Field(ge=0)] | Share = 1  # nodes that evict at once
    per_hour: Count = 0
    """Withdrawals an hour for the whole pool; 0 is no limit beyond max_withdrawn."""
    pool: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,30}[a-z0-9])?$")] = "gpu"
    """The pool's name in the Leases that hold its slots."""
    pool_selector: str = "nvidia.com/gpu.present=true"
    """The label selector of the pool's nodes."""
    namespace: str = "gpu-health-agent"  # where Leases, pause and templates are


class Deadlines(_Section):
    """How long a drain waits for budgets and protected pods before ``on_deadline``, by remedy."""

    contact_support: Seconds = 3600  # until a person sees to the GPU
    reset_gpu: Seconds = 3600  # before a reset
    reboot_node: Seconds = 3600  # before a reboot
    replace_node: Seconds = 3600  # before a replacement

    def of(self, remedy: Remedy) -> float:
        return float(getattr(self, remedy, self.contact_support))


class Drain(_Section):
    gather_s: Seconds = 10
    """From the taint to the first eviction: a node's faults are gathered, so that a gang restarts once."""
    deadline_s: Deadlines = Deadlines()
    eviction: Literal["api", "ask_then_delete"] = "api"
    """ask_then_delete: the Eviction API is asked in a dry run only, then the pod is deleted by its UID: for clusters
    where a stolen token must evict nothing, with overlays/hardened."""
    on_deadline: Literal["wait", "delete"] = "wait"
    """delete: what a budget still protects is deleted, with its own grace period."""
    unmanaged: Literal["wait", "delete"] = "wait"
    """Pods without a controller, or with a volume on this node's own disk: wait for a person, or let them go."""
    checkpoint_s: Seconds = 300
    """The longest wait for a pod's checkpoint, whatever it declares; on a lost GPU nobody waits."""
    exclude_namespaces: tuple[str, ...] = ("kube-system",)  # whose pods leave for a node's remedy only
    resource_prefixes: tuple[str, ...] = ("nvidia.com/",)
    """A pod that requests an extended resource with one of these prefixes holds a GPU."""


class Repair(_Section):
    """What may be done to the node once it is drained; nothing is, unless a template is named here."""

    reset_gpu: str | None = None
    reboot_node: str | None = None
    replace_node: str | None = None
    """Suspended CronJobs in the agent's namespace, of which a Job on this node is made."""
    check: str | None = None  # one more: a Job of it must end well before a cured node returns
    request_replacement: bool = False
    """For replace_node: condition GpuReplacementRequested, on which another controller acts."""
    max_attempts: Annotated[int, Field(ge=1, le=5)] = 2
    """Of each remedy in one incident, before the next harder one that is configured."""
    pause_s: Seconds = 60
    """After a failed attempt; it doubles."""
    deadline_s: Annotated[int, Field(ge=1)] = 900
    """How long a remedy's Job may run."""
    prove_s: Seconds = 600
    """How long after the Job the GPU must be well again, and after a reboot the node in another boot."""


class Http(_Section):
    address: str = ""
    """Where /metrics listens; empty: every address of the pod, IPv4 and IPv6."""
    port: Annotated[int, Field(ge=0, le=65535)] = 9836  # of /metrics, /healthz, /readyz, /state and the page


class Config(_Section):
    mode: Mode = Mode.OBSERVE  # observe, taint or evict
    node: str | None = None
    """The Node object to write to; unset: the environment's NODE_NAME."""
    poll_s: Annotated[float, Field(gt=0, le=300)] = 5  # how often each GPU is read
    sources: Sources = Sources()
    policy: Limits = Limits()
    budget: Budget = Budget()
    drain: Drain = Drain()
    repair: Repair = Repair()
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
        if isinstance(part, int):  # a list, of which there is one: policy.overrides
            section = Override
            continue
        annotation = section.model_fields[part].annotation
        if annotation == tuple[Override, ...]:
            continue
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return ""
        section = annotation
    known = list(section.model_fields)
    near = get_close_matches(str(loc[-1]), known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; known here: {', '.join(known)}"
