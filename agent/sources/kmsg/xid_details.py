"""What an Xid's line says beyond its code: whose it was, where on the GPU, on which link, and what is due."""

from __future__ import annotations

import re
from collections.abc import Iterator

from agent.model.observation import Value

_INSTANCE = re.compile(r"GPU-I:([0-9a-fA-F]+)(?:\s+GPU-CI:([0-9a-fA-F]+))?")
_PID = re.compile(r"\bpid='?(\d{1,10})'?")
_NAME = re.compile(r"\bname=(.*?), ")
_ACTION = re.compile(r"recovery action changed from 0x[0-9a-fA-F]+ \([^)]*\) to 0x([0-9a-fA-F]{1,8})")
_CHANNEL_REPAIR = 160  # it says itself whether a reset activates it or only a reboot
_UNIT_OF_SMS = re.compile(r"\(GPC (\d{1,3}),(?: CPC \d{1,3},)? TPC (\d{1,3})(?:, SM (\d{1,3}))?\)")
_MMU = re.compile(
    r"MMU Fault: ENGINE ([A-Z][A-Z0-9_ ]{0,60}?) faulted @ .{0,60}?"
    r"Fault is of type (FAULT_\w{1,30}(?: ACCESS_TYPE_\w{1,30})?)"
)
_NAMES_A_GPC = re.compile(r"\bGPC\d")
_LINK = re.compile(r"\blink\s+(\d{1,3})\b(?:\s*\(((?:0x[0-9a-fA-F]{1,8}(?:,?\s*)){7})\))?", re.IGNORECASE)
_NVLINK5 = range(144, 151)
# "XC0 i0"; drivers before r575 may write "XC 0 i 0". Link -1 is none.
_NVLINK5_WORDS = re.compile(
    r"(?:\b([A-Z][A-Z0-9_]{1,30})\s+)?\b((?:Link[ -])?(?:Non-?)?Fatal)\s+XC\s?\d+(?:\s+i\s?(\d))?"
    r"(?:\s+Link\s+(-?\d{1,3}))?(?:\s+\((0x[0-9a-f]{1,8}),?\s+(0x[0-9a-f]{1,8})\b)?",
    re.IGNORECASE,
)


def details(instance: str, rest: str, code: int) -> dict[str, Value]:
    """Of what stands in the parentheses after the address, and of all that stands after the code.

    A process may be named like anything: of several that look alike the last is the driver's own.
    """
    values: dict[str, Value] = {}
    if found := _INSTANCE.search(instance):
        values["gpu_instance"] = int(found[1], 16)
        if found[2]:
            values["compute_instance"] = int(found[2], 16)
    if found := _PID.search(rest):
        values["pid"] = int(found[1])
    if (found := _NAME.search(rest)) and found[1] != "<unknown>":
        values["name"] = found[1][:64]
    if code == 154 and (found := _ACTION.search(rest)):
        values["recovery_action"] = int(found[1], 16)
    values.update(_of_code(code, rest))
    return values


def _of_code(code: int, rest: str) -> Iterator[tuple[str, Value]]:
    if code == 13 and (found := _last(_UNIT_OF_SMS, rest)):
        yield "place", f"GPC {int(found[1])}, TPC {int(found[2])}"
        if found[3]:
            yield "sm", int(found[3])
    elif code == 31 and (found := _last(_MMU, rest)):
        yield "engine", found[1]
        yield "access", found[2]
        if _NAMES_A_GPC.search(found[1]):  # an engine alone is the whole GPU's
            yield "place", found[1]
    elif code == 74 and (found := _last(_LINK, rest)):
        yield "link", int(found[1])
        if found[2]:
            yield "registers", " ".join(found[2].replace(",", " ").lower().split())
    elif code == _CHANNEL_REPAIR and "node reboot" in rest:
        yield "reboot", 1
    elif code in _NVLINK5 and (found := _last(_NVLINK5_WORDS, rest)):
        yield "fatal", int("non" not in found[2].lower())
        yield "severity", found[2]
        if found[1]:
            yield "unit", found[1].upper()
        if found[3] == "1":
            yield "injected", 1
        if found[4] and int(found[4]) >= 0:
            yield "link", int(found[4])
        if found[6]:
            yield "intrinfo", int(found[5], 16)
            yield "error_status", int(found[6], 16)


def _last(form: re.Pattern[str], text: str) -> re.Match[str] | None:
    return next(reversed([*form.finditer(text)]), None)
