"""Every setting but those of rules, sources and neighbours."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from agent.config.limits import Count, Limits, Seconds, Section, form
from agent.config.neighbour_settings import Gate, Webhook
from agent.config.pool_name import DEFAULT_SELECTOR, SELECTOR, pool_name, with_old_name, without_old_name
from agent.config.source_settings import Sources
from agent.model.neighbours import NEIGHBOURS, Preset
from agent.model.remedy import LADDER, Remedy

_SHARE = r"(100|[1-9]?[0-9])%"


def _nodes(value: Any) -> Any:
    if not re.fullmatch(rf"\s*[0-9]+(\.0+)?\s*|{_SHARE}", str(value)):
        raise ValueError("write a number of nodes, as 5, or a share of the pool from 0% to 100%, as 5%")
    return value


Nodes = Annotated[Count | Annotated[str, Field(pattern=f"^{_SHARE}$")], BeforeValidator(_nodes)]
_NAME = form(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", "write a namespace's name: a-z, 0-9 and -, at most 63")
Namespace = Annotated[str, *_NAME]
_SELECTOR = form(SELECTOR, "write a label selector, as nvidia.com/gpu.present=true,example.com/pool in (a,b)")
_KEY = form(r"[A-Za-z0-9][A-Za-z0-9._/-]*", "write a taint's key, as example.com/broken")
_PREFIX = form(r"[A-Za-z0-9][A-Za-z0-9./-]*", "write how a resource's name begins, as nvidia.com/")
_ADDRESS = form(r"[0-9A-Za-z.:%_-]*", "write an IP address or a host's name; empty: every address")


class Mode(StrEnum):
    """What the agent may do; each mode includes the one before."""

    OBSERVE = "observe"  # conditions, labels, Events
    TAINT = "taint"  # the taints too
    EVICT = "evict"  # evictions too


class Budget(Section):
    """How much of the cluster may be out of service at once through our doing."""

    _known = model_validator(mode="before")(without_old_name)
    model_config = ConfigDict(json_schema_extra=with_old_name)
    max_withdrawn: Nodes = "10%"
    """Nodes of the pool with our hard taint, a number or a share of the pool (at least 1, of 0% none)."""
    max_draining: Nodes = 1  # nodes that evict at once
    per_hour: Count = 0
    """Withdrawals an hour for the whole pool; 0 is no limit beyond max_withdrawn."""
    pool_selector: Annotated[str, *_SELECTOR] = DEFAULT_SELECTOR
    """The label selector of the pool's nodes. Agents with the same one share the permits."""
    others_taints: tuple[Annotated[str, *_KEY], ...] = ()
    """More keys of others' taints that mean a node is out of service, and count (those of autoscalers are known)."""
    namespace: Namespace = "gpu-health-agent"  # where Leases, pause and templates are

    @property
    def pool(self) -> str:
        """In the names and labels of the permits' Leases."""
        return pool_name(self.pool_selector)

    def withdrawn(self, pool_size: int) -> int:
        """How many nodes of so many may hold a withdrawn permit."""
        return _most(self.max_withdrawn, pool_size)

    def draining(self, pool_size: int) -> int:
        """And how many a draining one."""
        return _most(self.max_draining, pool_size)


def _most(setting: int | str, pool_size: int) -> int:
    """A share is rounded down, and at least 1; that of 0% is none, as the number 0."""
    if isinstance(setting, int):
        return setting
    share = int(setting.rstrip("%"))
    return max(1, pool_size * share // 100) if share else 0


class Deadlines(Section):
    """How long a drain waits for budgets and protected pods before ``on_deadline``, by remedy."""

    contact_support: Seconds = 3600  # until a person sees to the GPU
    reset_gpu: Seconds = 3600  # before a reset
    reboot_node: Seconds = 3600  # before a reboot
    replace_node: Seconds = 3600  # before a replacement

    def of(self, remedy: Remedy) -> float:
        return float(getattr(self, remedy.row.deadline))


class Drain(Section):
    gather_s: Seconds = 10
    """From the taint to the first eviction: a node's faults are gathered, so that a gang restarts once."""
    deadline_s: Deadlines = Deadlines()
    eviction: Literal["api", "ask_then_delete"] = "api"
    """ask_then_delete: the Eviction API is asked in a dry run only, then the pod is deleted by its UID: for clusters
    where a stolen token must evict nothing, with overlays/hardened."""
    on_deadline: Literal["wait", "delete", "no_execute"] = "wait"
    """delete: a pod that a PodDisruptionBudget still protects is deleted, with its own grace period. no_execute, with
    the preset dra: where its GPU is fenced, Kubernetes deletes all pods on it, past budgets and checkpoints."""
    unmanaged: Literal["wait", "delete"] = "wait"
    """Pods without a controller, or with a volume on this node's own disk: wait for a person, or let them go."""
    checkpoint_s: Seconds = 300
    """The longest wait for a pod's checkpoint, whatever it declares; on a lost GPU nobody waits."""
    exclude_namespaces: tuple[Namespace, ...] = ("kube-system",)  # whose pods leave for a node's remedy only
    resource_prefixes: tuple[Annotated[str, *_PREFIX], ...] = ("nvidia.com/",)
    """An extended resource with one of these prefixes is a GPU: in what a pod requests, in what the kubelet says that
    it holds, and in what the Node offers."""


class Repair(Section):
    """What may be done to the node once it is drained; nothing is, unless a template is named here."""

    reset_gpu: str | None = None
    reboot_node: str | None = None
    replace_node: str | None = None
    """Suspended CronJobs in the agent's namespace, of which a Job on this node is made."""
    check: str | None = None  # one more: a Job of it must end well before a cured node returns
    collect: str | None = None
    """One more: a Job of it takes evidence before the first remedy of an incident, while the node is drained."""
    collect_s: Seconds = 300
    """How long that Job may run; the repair waits for it one minute more at most."""
    reset_when_idle: bool = False
    """In mode evict, a degraded GPU whose remedy is reset_gpu is reset once nobody uses it: under a permit, but never
    the last free one. Nobody is evicted for it, and an incident gets one reset."""
    diagnose: Literal[1, 2, 3, 4] | None = None
    """Instead of such a Job: the level of DCGM's diagnosis that the cured GPUs must pass before the node returns. The
    agent runs it itself, from level 2 on only while no process is on them."""
    request_replacement: bool = False
    """For replace_node: condition GpuReplacementRequested, on which another controller acts."""
    max_attempts: Annotated[int, Field(ge=1, le=5)] = 2
    """Of each remedy in one incident, before the next harder one that is configured."""
    pause_s: Seconds = 60
    """After a failed attempt; it doubles. After a Job that never began it is at least a second."""
    deadline_s: Annotated[int, Field(ge=1)] = 900
    """How long a remedy's Job may run, and a diagnosis that can't be run is tried again before a person decides."""
    prove_s: Seconds = 600
    """How long after the Job the GPU must be well again, and after a reboot the node in another boot."""

    @property
    def templates(self) -> dict[str, str]:
        """What a Job can be made for, a remedy or the check → the name of its template."""
        named = {str(remedy): getattr(self, remedy.row.template) for remedy in LADDER} | {
            "check": self.check,
            "collect": self.collect,
        }
        return {what: template for what, template in named.items() if template}

    def offers(self, remedy: Remedy) -> bool:
        """Whether it can be made, or asked for."""
        return remedy in self.templates or (remedy is Remedy.REPLACE_NODE and self.request_replacement)

    @field_validator("diagnose")
    @classmethod
    def _one_check(cls, level: int | None, others: ValidationInfo) -> int | None:
        if level and others.data.get("check"):
            raise ValueError("repair.check is set as well: leave one of the two out")
        return level


class Recurrence(Section):
    """What follows when a card, a slot or the node itself breaks again: it is proved longer and harder."""

    enabled: bool = True
    """Off: a node returns once it is cured, whatever broke before."""
    window_s: Seconds = 5_184_000  # how long an incident that ended well is remembered for it
    first_hold_s: Seconds = 28_800
    """How long a node stays out of service after the cure of what broke for the first time, with its permit, while the
    pool has another one free. 0: it returns at once."""
    hold_s: Seconds = 28_800
    """The same of what broke for the second time; it doubles with each further time."""
    most_hold_s: Seconds = 86_400  # and no longer than this
    watch_s: Seconds = 86_400
    """How long it bears the soft taint after its return."""
    replace_after: Count = 2
    """After so many earlier incidents a replacement is asked for instead of another reset or reboot, where one is
    configured; 0: never."""


class Evidence(Section):
    """The flight recorder: the last quarter of an hour in memory, written down when a fault turns fatal."""

    folder: Path = Path("/var/lib/gpu-health-agent/evidence")
    """Where, in five files of about 1 MiB at most. Nothing is recorded where this folder is not there."""


class Http(Section):
    address: Annotated[str, *_ADDRESS] = ""
    """Where /metrics listens; empty: every address of the pod, IPv4 and IPv6."""
    port: Annotated[int, Field(ge=0, le=65535)] = 9836  # of /metrics, /healthz, /readyz, /state and the status page


class Config(Section):
    mode: Mode = Mode.OBSERVE  # observe, taint or evict
    node: str | None = None
    """The Node object to write to; unset: the environment's NODE_NAME."""
    poll_s: Annotated[float, Field(gt=0, le=300)] = 5  # how often each GPU is read
    sources: Sources = Sources()
    policy: Limits = Limits()
    budget: Budget = Budget()
    drain: Drain = Drain()
    repair: Repair = Repair()
    recurrence: Recurrence = Recurrence()
    gate: Gate = Gate()
    webhook: Webhook = Webhook()
    presets: Annotated[tuple[Preset, ...], Field(validate_default=True)] = ()
    """What other controllers act on, reported in their terms too. cluster-autoscaler: its taint beside our hard one.
    slinky: a cordon beside it, so that Slurm drains the node; its pods leave once it has. dra: a DeviceTaintRule in its
    place, for the GPU alone. The others replace a node, and need repair.request_replacement. cluster-api, medik8s:
    GpuReplacementRequested alone; eks: condition AcceleratedHardwareReady beside it; gke, hyperpod: a label of theirs
    beside it; webhook: a POST beside it."""
    evidence: Evidence = Evidence()
    http: Http = Http()

    @field_validator("repair")
    @classmethod
    def _diagnosable(cls, repair: Repair, others: ValidationInfo) -> Repair:
        if repair.diagnose and "sources" in others.data and not others.data["sources"].dcgm.enabled:
            raise ValueError("repair.diagnose needs DCGM: set sources.dcgm.enabled to true, or leave it out")
        return repair

    @field_validator("gate")
    @classmethod
    def _liftable(cls, gate: Gate, others: ValidationInfo) -> Gate:
        if gate.enabled and others.data.get("mode") is Mode.OBSERVE:
            raise ValueError("mode observe takes no taint off: set mode to taint or evict, or gate.enabled to false")
        if gate.diagnose and not gate.enabled:
            raise ValueError("gate.diagnose is what the gate waits for: set gate.enabled to true as well")
        if gate.diagnose and "sources" in others.data and not others.data["sources"].dcgm.enabled:
            raise ValueError("gate.diagnose needs DCGM: set sources.dcgm.enabled to true, or leave it out")
        return gate

    @property
    def diagnoses(self) -> bool:
        """Whether the agent itself has GPUs diagnosed."""
        return bool(self.repair.diagnose or self.gate.diagnose)

    @property
    def fences(self) -> bool:
        """Whether single GPUs are fenced where that is possible."""
        return any(NEIGHBOURS[preset].fences for preset in self.presets)

    @field_validator("presets")
    @classmethod
    def _asking(cls, presets: tuple[Preset, ...], others: ValidationInfo) -> tuple[Preset, ...]:
        if Preset.WEBHOOK in presets and "webhook" in others.data and not others.data["webhook"].url:
            raise ValueError("webhook has nobody to tell: set webhook.url as well")
        if Preset.DRA not in presets and "drain" in others.data and others.data["drain"].on_deadline == "no_execute":
            raise ValueError("drain.on_deadline: no_execute is an effect of fences: choose the preset dra as well")
        if "repair" not in others.data or others.data["repair"].request_replacement:
            return presets
        for preset in presets:
            if NEIGHBOURS[preset].replaces:
                way = "is a way to ask for a replacement: set repair.request_replacement to true as well"
                raise ValueError(f"{preset} {way}")
        return presets
