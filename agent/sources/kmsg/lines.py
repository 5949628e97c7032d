"""What the kernel's words state about GPUs: Xid, SXid, lost-GPU and driver records, in every form they take."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from agent.model.observation import Signal, Value, Words
from agent.model.text import normalise_pci

# A record speaks for the driver only if it begins so: audit and other records quote paths and names that anyone can
# choose, and bear facility 0 too.
_BEGIN = re.compile(r"(?:\[\s*\d+\.\d+\]\s*)?(?=NVRM: |nvidia-nvswitch\d+: )")
_XID = re.compile(
    r"NVRM: Xid \((?:PCI:)?([0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}(?:\.[0-7])?)([^)]*)\): (\d{1,6})\b"
)
_INSTANCE = re.compile(r"GPU-I:([0-9a-fA-F]+)(?:\s+GPU-CI:([0-9a-fA-F]+))?")
_PID = re.compile(r"\bpid='?(\d{1,10})'?")
_NAME = re.compile(r"\bname=(.*?), ")
_ACTION = re.compile(r"recovery action changed from 0x[0-9a-fA-F]+ \([^)]*\) to 0x([0-9a-fA-F]{1,8})")
_ADDRESS = r"([0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}(?:\.[0-7])?)"
_OFF_THE_BUS = re.compile(rf"NVRM: GPU {_ADDRESS}: GPU has fallen off the bus")
_PROBE_BEGIN = re.compile(rf"NVRM: The NVIDIA GPU {_ADDRESS}")
_PROBE_LOST = "fallen off the bus and is not responding to commands"
_PROBE_RECORDS = 3  # the multi-line form may come as so many records one after the other
# Of an SXid's three records only the first says how bad it is; the two others bear details of the same error.
_SXID = re.compile(
    rf"nvidia-nvswitch\d+: SXid \(PCI:{_ADDRESS}\): (\d{{1,6}}), (Fatal|Non-fatal)\b(?:.*?\bLink (\d{{1,3}}))?"
)
_INIT_FAILED = re.compile(rf"NVRM: GPU {_ADDRESS}: (?:RmInitAdapter|rm_init_adapter) failed")
_SIGN_CHARS = 80  # where the sign stands, and not in what is quoted after it
_LOADED = re.compile(r"NVRM: loading NVIDIA UNIX \S+ Kernel Module\b")  # "x86_64", or "Open" with "for x86_64" after
_UVM_FATAL = "uvm encountered global fatal error"
_API_MISMATCH = "NVRM: API mismatch"
_NVLINK5 = range(144, 151)
_NVLINK5_WORD = re.compile(r"\b(Nonfatal|Fatal)\s+XC\d")  # the last: a process may be named like it
_ESCAPE = re.compile(rb"\\x([0-9a-fA-F]{2})")


@dataclass(frozen=True, slots=True)
class Record:
    """One kernel record: facility 0 is the kernel's own, anything else was written by user space."""

    facility: int
    seq: int
    usec: int
    text: str


def parse_record(raw: bytes) -> Record:
    """``PRIO,SEQ,USEC,FLAGS[,...];TEXT`` and continuation lines. ValueError for anything else."""
    head, found, rest = raw.partition(b";")
    fields = head.split(b",")
    if not found or len(fields) < 4:
        raise ValueError("not a kernel record")
    text = _ESCAPE.sub(lambda m: bytes([int(m[1], 16)]), rest.split(b"\n", 1)[0])
    return Record(int(fields[0]) >> 3, int(fields[1]), int(fields[2]), text.decode(errors="replace"))


class Facts:
    """Kernel text → what it states about GPUs. Remembers a multi-record form for a few records."""

    def __init__(self) -> None:
        self._address, self._left = "", 0

    def of(self, text: str) -> Iterator[tuple[Signal, str, Value, dict[str, Value]]]:
        """Signal, PCI address, value and further values; ValueError for an address that is none."""
        if not (spoken := _BEGIN.match(text)):
            self._left = max(0, self._left - 1)
            return
        text = text[spoken.end() :]
        if xid := _XID.match(text):
            code = int(xid[3])
            yield Signal.XID, normalise_pci(xid[1]), code, _details(xid[2], text[xid.end() :], code)
            return
        if lost := _OFF_THE_BUS.match(text):
            yield Signal.LOST, normalise_pci(lost[1]), None, {}
            return
        if switch := _SXID.match(text):
            values: dict[str, Value] = {"fatal": int(switch[3] == "Fatal")}
            if switch[4]:
                values["link"] = int(switch[4])
            yield Signal.SXID, normalise_pci(switch[1]), int(switch[2]), values
            return
        if failed := _INIT_FAILED.match(text):
            yield Signal.DRIVER, normalise_pci(failed[1]), Words.INIT_FAILED, {}
            return
        if _LOADED.match(text):
            yield Signal.DRIVER, "", Words.LOADED, {}
            return
        for words, sign in ((Words.UVM_FATAL, _UVM_FATAL), (Words.API_MISMATCH, _API_MISMATCH)):
            if sign in text[:_SIGN_CHARS]:
                yield Signal.DRIVER, "", words, {}
                return
        if begin := _PROBE_BEGIN.match(text):
            self._address, self._left = normalise_pci(begin[1]), _PROBE_RECORDS
        if self._left and _PROBE_LOST in " ".join(text.replace("NVRM:", "").split()):
            yield Signal.LOST, self._address, None, {}
            self._left = 0
        elif self._left:
            self._left -= 1


def _details(instance: str, rest: str, code: int) -> dict[str, Value]:
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
    return values
