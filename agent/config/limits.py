"""The thresholds of the rules, and other opinions on single ones: what a configuration file says under ``policy``."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from agent.model.remedy import Remedy


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _plain(cls, value: Any, field: ValidationInfo) -> Any:
        if isinstance(value, bool) and cls.model_fields[str(field.field_name)].annotation is not bool:
            raise ValueError("write a value: YAML reads yes, no, on and off as true and false")
        if isinstance(value, str) and not "".join(value.split()).isprintable():
            raise ValueError("write it in printable characters")
        return value


def form(pattern: str, wanted: str) -> tuple[Any, Any]:
    """Of a text, for ``Annotated``; ``wanted`` says in an error what to write."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(wanted)
        return text

    return AfterValidator(check), Field(json_schema_extra={"pattern": f"^({pattern})$"})


Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Seconds = Amount
Count = Annotated[int, Field(ge=0, le=1_000_000_000)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, le=1)]
_LABEL = form(r"[^=]+=.*", "write a label with its value, as KEY=VALUE")


class Override(Section):
    """Another opinion on one rule, for all GPUs or those of a model or node label; a later one wins."""

    rule: str  # a name of the table of rules
    gpu_model: str | None = None
    """A pattern on NVML's product name: "*H100*"."""
    node_label: Annotated[str, *_LABEL] | None = None  # KEY=VALUE of the node
    disabled: bool = False  # the rule finds nothing
    severity: Literal["notice", "degraded", "fatal"] | None = None  # notice, degraded or fatal
    remedy: Remedy | None = None  # a remedy of the table of rules
    count: Annotated[int, Field(ge=1, le=64)] | None = None
    window_s: Seconds = 3600
    """Xids only: below so many within the window it is a notice."""
    confirm_s: Seconds | None = None
    """How long it must last before it counts; an event, as an Xid is, how much later it must come again."""
    clear_s: Seconds | Literal["latched"] | None = None
    """How long it must be gone, or "latched": only a proved cure ends it."""


class Limits(Section):
    """The thresholds of the rules; durations in seconds, temperatures in °C."""

    overrides: tuple[Override, ...] = ()  # other opinions on single rules

    silent_s: Seconds = 60
    """A source that finished no poll, or a GPU that was not read, for so long is unknown; for three times, degraded."""
    slow_poll_s: Positive = 10
    """A poll of the GPUs that takes longer, for silent_s, is reported as a notice: calls into the driver take long."""
    missing_confirm_s: Seconds = 60
    """How long a GPU must be missing from NVML's enumeration: driver roll-outs pass sooner."""
    withheld_confirm_s: Seconds = 300
    """How long the kubelet must offer pods none of the GPUs that it has: a device plugin begins anew sooner."""
    refused_window_s: Seconds = 3600
    refused_workloads: Annotated[int, Field(ge=2)] = 3
    """Where the kubelet refuses pods of so many workloads within the window, and all GPUs read well: degraded."""
    temperature_confirm_s: Seconds = 60  # how long a GPU must be too hot before it counts
    temperature_clear_s: Seconds = 600  # and cool before that clears
    temperature_hysteresis_c: Amount = 3  # °C below the limit that count as cool
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
    app_workloads_in_place: Annotated[int, Field(ge=2)] = 2
    """So many suffice where each of them failed at the same unit of the GPU (Xid 13: GPC and TPC) and at no other."""
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
    degraded_effect: Literal["PreferNoSchedule", "NoSchedule"] = "PreferNoSchedule"
    """Of a degraded node's taint. NoSchedule keeps every new pod away and costs a withdrawal's permit, but never the
    last free one; without one it stays PreferNoSchedule."""
    soak_s: Seconds = 600
    """How long a cured GPU must stay well before the node returns to service."""
    aside_s: Seconds = 7200
    """How long a driver upgrade or a change of MIG may last until it counts as forgotten: NVML stays closed and nothing
    is done, but what is seen from then on is reported as ever."""
    expected_gpus: Count | None = None
    """How many GPUs the node must have; unset: as many as were seen since the agent's start."""
