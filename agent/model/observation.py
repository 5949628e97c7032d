"""The words the agent thinks in: frozen values that pass from room to room. Imports nothing from the agent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from agent.model.text import is_number, normalise_pci, read_json, rfc3339, unix_s


class Signal(StrEnum):
    """What a source line states."""

    ALIVE = "alive"  # a heartbeat: the source polled or waited and came back
    READING = "reading"  # the values of one GPU at one poll
    XID = "xid"  # an Xid error; value is its code
    SXID = "sxid"  # an NVSwitch error; value is its code, pci the switch's address
    DRIVER = "driver"  # the kernel module's other words; value is one of Words
    LOST = "lost"  # a GPU no longer answers
    RESET_REQUIRED = "reset_required"  # NVML error 16
    HEALTH = "health"  # an incident of DCGM's health check; value is its code
    FAILED = "failed"  # the source as a whole can't see; value is a Failure
    SLOW = "slow"  # a poll is under way for long, and its calls come back; value is its seconds so far
    GAP = "gap"  # records were overwritten before they were read; value is how many


# Of an Xid's values those that tell one word from another: how grave it is, on which link and why.
DECISIVE = ("registers", "link", "fatal", "intrinfo", "error_status", "recovery_action", "reboot")


class Words(StrEnum):
    """What the kernel module says besides Xids."""

    UVM_FATAL = "uvm_fatal"  # unified memory met an error that only a reboot ends
    INIT_FAILED = "init_failed"  # a GPU's adapter could not be initialised
    POWER_CABLE = "power_cable"  # a GPU lacks its power cable
    UNUSABLE = "unusable"  # the driver can't use a GPU that is on the bus
    OPEN_MODULES = "open_modules"  # a GPU works with the open kernel modules only
    LINK_GONE = "link_gone"  # the PCIe link to a GPU met an error that it does not recover from
    RESET_REQUIRED = "reset_required"  # some GPU needs a reset; which one, NVML says
    GPU_LOST = "gpu_lost"  # some GPU left the bus; which one, NVML says
    DISPLAY_HUNG = "display_hung"  # the display driver waits for a GPU in vain
    API_MISMATCH = "api_mismatch"  # a client's library is of another version than the module
    LOADED = "loaded"  # the module was loaded: no fault, the driver is a fresh one


class Failure(StrEnum):
    """Why a source as a whole can't see. None of them is a hardware fault by itself."""

    NO_LIBRARY = "no_library"  # NVML error 12
    DRIVER_NOT_LOADED = "driver_not_loaded"  # 9
    LIBRARY_MISMATCH = "library_mismatch"  # 18
    NO_PERMISSION = "no_permission"  # 4, or EPERM on a device
    ABSENT = "absent"  # there is nothing to see with, and nobody asked for it
    KEEP_OFF = "aside"  # it was ended on purpose, for a reset or a driver upgrade; raw says why
    HUNG = "hung"  # a call into the driver has not returned; raw says which
    UNREACHED = "unreached"  # the container of the sources does not answer; raw says where
    UNREADABLE = "unreadable"  # anything else; raw says what


class Missing(StrEnum):
    """Why a value is absent; a value that was not yet read has no key at all."""

    UNSUPPORTED = "unsupported"  # this GPU or driver has no such value, and never will
    UNREADABLE = "unreadable"  # it has one, and reading it failed this time


Value = int | float | bool | str | Missing | None


@dataclass(frozen=True, slots=True)
class Observation:
    """One fact from one source. ``at`` is Unix seconds by the wall clock and serves people only;
    ``arrived`` is the agent's monotonic clock at arrival and serves every decision."""

    at: float
    source: str
    signal: Signal
    pci: str = ""  # the GPU, as 0000:1b:00.0; empty for the node itself
    value: Value = None
    values: Mapping[str, Value] = field(default_factory=dict)
    raw: str = ""  # the line or message as it came, at most 500 characters: hostile input
    boot_id: str = ""
    seq: int | None = None  # the kernel's own record number
    past: bool = False  # the record was there before the agent's first start on this node
    drill: str = ""  # the nonce of the drill that it quotes: user space wrote it, and it may be no fault at all
    arrived: float = 0.0

    def to_json(self) -> str:
        """The line a source prints; absent values travel apart from real ones.

        A number that no reader takes is unreadable, and costs no other value of its line.
        """
        values = {k: Missing.UNREADABLE if _is_none(v) else v for k, v in self.values.items()}
        line: dict[str, Any] = {"at": rfc3339(self.at), "source": self.source, "signal": self.signal}
        if self.pci:
            line["pci"] = self.pci
        if self.value is not None:
            line["value"] = self.value
        if values:
            line["values"] = {k: v for k, v in values.items() if not isinstance(v, Missing)}
        for missing in Missing:
            names = [k for k, v in values.items() if v is missing]
            if names:
                line[missing] = names
        for key in ("raw", "boot_id", "seq", "past", "drill"):
            if value := getattr(self, key):
                line[key] = value
        return json.dumps(line, separators=(",", ":"))


def _is_none(value: Value) -> bool:
    return isinstance(value, int | float) and not is_number(value)


def parse_line(line: bytes | str, arrived: float) -> Observation:
    """Read one source line; ValueError with a reason for anything that is not one."""
    try:
        data = read_json(line)
        values: dict[str, Value] = {**data.get("values", {})}
        for missing in Missing:
            values.update(dict.fromkeys(data.get(missing, ()), missing))
        if not all(isinstance(k, str) and isinstance(v, int | float | str) for k, v in values.items()):
            raise ValueError("values must be plain")
        if not isinstance(data.get("value"), int | float | str | None):
            raise ValueError("value must be plain")
        if (at := unix_s(data["at"])) is None:
            raise ValueError(f"at must be a time of RFC 3339, not {data['at']!r}"[:100])
        if (seq := data.get("seq")) is not None and type(seq) is not int:
            raise ValueError("seq must be the number of a kernel record")
        return Observation(
            at=at,
            source=str(data["source"]),
            signal=Signal(data["signal"]),
            pci=normalise_pci(data["pci"]) if data.get("pci") else "",
            value=data.get("value"),
            values=values,
            raw=str(data.get("raw", ""))[:500],
            boot_id=str(data.get("boot_id", ""))[:64],
            seq=seq,
            past=bool(data.get("past", False)),
            drill=str(data.get("drill", ""))[:64],
            arrived=arrived,
        )
    except (AttributeError, KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"not a source line: {error!r}") from error
