"""NVSwitch errors (SXid), by the kernel log and by DCGM, and the kernel module's own words."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.resources import files

from agent.config.limits import Limits
from agent.config.source_index import KERNEL_LOG, SECOND_WITNESS, TRACE
from agent.diagnosis.history import SECOND_LATE_S, History, number
from agent.diagnosis.row import TABLE, Row
from agent.model.fault import Finding, Severity
from agent.model.observation import Observation, Signal, Words
from agent.model.remedy import Remedy
from agent.model.text import quoted

_LINK_FAULT = 20034  # also what a switch says when the GPU at the link's other end was reset or lost
_SECONDARY_S = 60.0
ENDS = {"sxid-10005": "sxid-10004"}  # a switch says that its heat is over


def _catalog() -> Mapping[int, Row]:
    text = files("agent.diagnosis.rules").joinpath("sxid.csv").read_text(encoding="utf-8")
    return {
        int(row["code"]): _row(
            int(row["code"]), Severity[row["severity"].upper()], Remedy(row["remedy"]), row["meaning"]
        )
        for row in csv.DictReader(text.splitlines())
    }


def _row(code: int, severity: Severity, remedy: Remedy, meaning: str) -> Row:
    clear = {Severity.NOTICE: "notice_clear_s", Severity.DEGRADED: "degraded_xid_clear_s"}.get(severity, "")
    return Row(
        f"sxid-{code}",
        severity,
        remedy,
        f"SXid {code}: {meaning}",
        clear=clear,
        witnesses=(KERNEL_LOG, SECOND_WITNESS, TRACE),
        scope=("node",),
    )


CATALOG = _catalog()
ROWS = tuple(CATALOG.values())
UVM_FATAL = TABLE["uvm-fatal"]
API_MISMATCH = TABLE["api-mismatch"]
VETOED = TABLE["kernel-log-doubted"]
DISPLAY_HUNG = TABLE["display-hung"]
_NODES_OWN: Mapping[str, Row] = {
    Words.UVM_FATAL: UVM_FATAL,
    Words.API_MISMATCH: API_MISMATCH,
    Words.DISPLAY_HUNG: DISPLAY_HUNG,
}
_OF_A_GPU: Mapping[str, Row] = {
    Words.INIT_FAILED: TABLE["gpu-init-failed"],
    Words.POWER_CABLE: TABLE["gpu-power-cable"],
    Words.OPEN_MODULES: TABLE["gpu-needs-open-modules"],
    Words.UNUSABLE: TABLE["gpu-unusable"],
    Words.LINK_GONE: TABLE["pcie-link-gone"],
    Words.GPU_LOST: TABLE["gpu-lost"],
    Words.RESET_REQUIRED: TABLE["gpu-reset-required"],
}


def find(history: History, limits: Limits) -> Iterator[Finding]:
    for observation in history.fresh:
        if observation.signal is Signal.SXID and isinstance(observation.value, int):
            yield _switch(history, observation, observation.value, limits)
        elif observation.signal is Signal.DRIVER:
            words = str(observation.value)
            if row := _NODES_OWN.get(words) or _OF_A_GPU.get(words):
                named = observation.pci or words in _NODES_OWN
                yield (row if named else _of_some_gpu(row)).found(observation, limits)
    for observation in history.vetoed:
        words = f"{VETOED.meaning}: {quoted(observation.raw)}"
        yield VETOED.found(observation, limits, words, pci=observation.pci if observation.signal is Signal.XID else "")


def _of_some_gpu(row: Row) -> Row:
    """What the driver says of a GPU without naming it: the node's fault, and short, until NVML says which GPU it is.

    NVML's word on that GPU is a fault of its own, which explains this one.
    """
    meaning = f"{row.meaning}; the driver does not say which GPU, and NVML is asked"
    return replace(
        row,
        severity=min(row.severity, Severity.DEGRADED),
        remedy=Remedy.CONTACT_SUPPORT,
        meaning=meaning,
        confirm="",
        clear="notice_clear_s",
    )


def unlisted(code: int, fatal: bool = False) -> Row:
    """As grave as the driver says of it."""
    severity, said = (Severity.FATAL, "fatal") if fatal else (Severity.NOTICE, "not fatal")
    return _row(code, severity, Remedy.CONTACT_SUPPORT, f"an NVSwitch error that the driver calls {said}")


def _switch(history: History, observation: Observation, code: int, limits: Limits) -> Finding:
    """The address is the switch's, so the fault is the node's; the driver's own word decides unlisted codes."""
    fatal = number(observation, "fatal") == 1
    row = CATALOG.get(code) or unlisted(code, fatal)
    late_s = SECOND_LATE_S if observation.source == SECOND_WITNESS else 0
    if code == _LINK_FAULT and _a_gpu_left(history, _SECONDARY_S + late_s):
        row = _row(code, Severity.NOTICE, Remedy.NONE, "link fault after a GPU at its other end was reset or lost")
    link, word = number(observation, "link"), number(observation, "fatal")
    said = (
        f"NVSwitch {observation.pci or 'at an unknown address'}",
        f"link {link:.0f}" if link is not None else "",
        f"{'Fatal' if fatal else 'Non-fatal'} by the driver" if word is not None else "",
    )
    found = row.found(observation, limits, f"{row.meaning} ({', '.join(part for part in said if part)})", pci="")
    return replace(found, switch=observation.pci)


def _a_gpu_left(history: History, within_s: float) -> bool:
    recently = (*(epoch.began for epoch in history.epochs.values()), *(o.arrived for o in history.lost.values()))
    return any(history.now - at <= within_s for at in recently)
