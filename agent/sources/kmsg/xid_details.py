"""What an Xid's line says beyond its code: whose it was, where on the GPU, on which link, and what is due."""

from __future__ import annotations

import re

from agent.model.observation import Value

_INSTANCE = re.compile(r"GPU-I:([0-9a-fA-F]+)(?:\s+GPU-CI:([0-9a-fA-F]+))?")
_PID = re.compile(r"\bpid='?(\d{1,10})'?")
_NAME = re.compile(r"\bname=(.*?), ")
_ACTION = re.compile(r"recovery action changed from 0x[0-9a-fA-F]+ \([^)]*\) to 0x([0-9a-fA-F]{1,8})")
_CHANNEL_REPAIR = 160  # it says itself whether a reset activates it or only a reboot
_NVLINK5 = range(144, 151)
_NVLINK5_WORD = re.compile(r"\b(Nonfatal|Fatal)\s+XC\d")  # the last: a process may be named like it


def details(instance: str, rest: str, code: int) -> dict[str, Value]:
    """Of what stands in the parentheses after the address, and of all that stands after the code."""
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
    if code in _NVLINK5 and (words := _NVLINK5_WORD.findall(rest)):
        values["fatal"] = int(words[-1] == "Fatal")
    if code == _CHANNEL_REPAIR and "node reboot" in rest:
        values["reboot"] = 1
    return values
