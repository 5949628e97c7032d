"""What the kernel's words state about GPUs: Xid, SXid, lost-GPU and driver records, in every form they take."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from agent.model.observation import Signal, Value, Words
from agent.model.text import normalise_pci
from agent.sources.kmsg.xid_details import details

# A record speaks for the driver, or for the bus about a GPU, only if it begins so: audit and other records quote paths
# and names that anyone can choose, and bear facility 0 too.
_BEGIN = re.compile(
    r"(?:\[\s*\d+\.\d+\]\s*)?"
    r"(?=NVRM: |nvidia(?:-nvswitch\d+|-modeset)?: |(?:nvidia|pcieport) [0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:)"
)
_XID = re.compile(
    r"NVRM: Xid \((?:PCI:)?([0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}(?:\.[0-7])?)([^)]*)\): (\d{1,6})\b"
)
_ADDRESS = r"([0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}(?:\.[0-7])?)"
# Of an SXid's three records only the first says how bad it is; the two others bear details of the same error.
_SXID = re.compile(
    rf"nvidia-nvswitch\d+: SXid \(PCI:{_ADDRESS}\): (\d{{1,6}}), (Fatal|Non-fatal)\b(?:.*?\bLink (\d{{1,3}}))?"
)
_LOST = re.compile(rf"NVRM: GPU (?:at )?(?:PCI:)?{_ADDRESS}:? (?:GPU )?has fallen off the bus")
_GPU = rf"NVRM: (?:GPU {_ADDRESS}: )?"  # older drivers leave the address out
_FAILED = r"(?:NVRM: )?(?:(?:GPU\d+ )?(?:\w+: )?(?:Assertion|Check) failed: )?"  # this may end the line before
_INVALID = r"This PCI I/O region assigned to your NVIDIA device is invalid:\s*(?:NVRM: )?"  # where lines were joined
# The driver's other words, each with the address where the words have one; the first that fits speaks.
_WORDS = tuple(
    (words, re.compile(form))
    for words, form in (
        (Words.POWER_CABLE, rf"{_GPU}GPU does not have the necessary power cables connected"),
        (Words.POWER_CABLE, rf"{_GPU}RmInitAdapter failed! \(0x[0-9a-fA-F]+:0x1[cC]:"),  # for insufficient power
        (Words.INIT_FAILED, rf"{_GPU}(?:RmInitAdapter|rm_init_adapter)(?:\(\d+\))? failed"),
        (Words.INIT_FAILED, rf"{_GPU}RmInitAdapter: Cannot initialize GSP firmware"),
        (Words.INIT_FAILED, r"NVRM: (?:GPU\d+ )?(?:\w+: )?(?:Max )?GSP-\w+ boot attempts exceeded"),
        (Words.RESET_REQUIRED, rf"{_FAILED}Reset required \[NV_ERR_RESET_REQUIRED\]"),
        (Words.GPU_LOST, rf"{_FAILED}GPU lost from the bus \[NV_ERR_GPU_IS_LOST\]"),
        (Words.UNUSABLE, rf"NVRM: (?:{_INVALID})?BAR\d is 0M @ 0x0 \(PCI:{_ADDRESS}\)"),
        (Words.UNUSABLE, rf"nvidia: probe of {_ADDRESS} failed with error -\d"),
        (Words.UNUSABLE, rf"nvidia {_ADDRESS}: probe with driver nvidia failed with error -\d"),
        (Words.UNUSABLE, r"NVRM: The NVIDIA probe routine failed for \d+ device"),
        (Words.UNUSABLE, r"NVRM: (?:GPU\d+ )?(?:\w+: )?\*\*\* Cannot attach gpu"),
        (Words.LINK_GONE, rf"nvidia {_ADDRESS}: AER: can't recover \(no error_detected callback\)"),
        (Words.LINK_GONE, rf"nvidia {_ADDRESS}: (?:AER: )?PCIe Bus Error: severity=Uncorrect(?:ed|able) \(Fatal\)"),
        (Words.DISPLAY_HUNG, r"nvidia-modeset: ERROR: GPU:\d+: Error while waiting for GPU progress"),
        (Words.UVM_FATAL, r"NVRM: .{0,50}?uvm encountered global fatal error"),  # not in what is quoted further on
        (Words.API_MISMATCH, r"NVRM: API mismatch"),
        (Words.LOADED, r"NVRM: loading NVIDIA UNIX \S+ Kernel Module\b"),  # "x86_64", or "Open" with the other after
    )
)
# A GPU's failed probe is told in several lines: of one record or of several, with others' in between.
_PROBE = re.compile(rf"NVRM: The NVIDIA GPU {_ADDRESS}")
_PROBE_ENDS: tuple[tuple[str, Words | None], ...] = (
    ("fallen off the bus and is not responding to commands", None),
    ("installed in this system is not supported by", Words.UNUSABLE),
    ("requires use of the NVIDIA open kernel modules", Words.OPEN_MODULES),
)
_PROBE_RECORDS = 64  # the most records from its first line to the last
_NEW_LINE = re.compile(r"\n|\\x0a|#012")  # as the kernel, an escaping reader and rsyslog write it
# In an Xid a process's name may hold one as well, but not what another Xid begins with: it has fifteen characters.
_NEXT_XID = re.compile(rf"(?:{_NEW_LINE.pattern})\s*(?=NVRM: Xid \()")
# A port's error names the device at fault where the port knows it; which GPUs are behind it only the bus can tell.
_PORT = re.compile(
    rf"pcieport {_ADDRESS}: (?:AER: )?(?:(?:Multiple )?Uncorrect(?:ed|able) \(Fatal\) error (?:message )?received"
    rf"(?:(?: from|:) {_ADDRESS})?|PCIe Bus Error: severity=Uncorrect(?:ed|able) \(Fatal\))"
)
# For whoever reads a log for people: what names the driver, and those of its words that nobody need wonder at.
_NAMES = re.compile(r"NVRM|nvswitch|\bS?Xid\b")
_STATES_NOTHING = re.compile(
    r"SXid \(PCI:\S+\): \d+, (?:Severity \d|Data \{)|\(PCI ID: |fallen off the bus and is not responding"
    r"|The NVIDIA GPU |driver release\.|Please see '|in this release's README|specific graphics driver download"
    r"|GPU at PCI:\S+: GPU-|Board Serial Number|has software scheduler|This PCI I/O region assigned"
    r"|None of the NVIDIA devices were initialized|heartbeat 0 since boot|BAR1 out of memory|Persistence mode"
)
_ESCAPE = re.compile(rb"\\x([0-9a-fA-F]{2})")

Fact = tuple[Signal, str, Value, dict[str, Value]]


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


def speaks(text: str) -> bool:
    """Whether a record is the driver's, or the bus's about a device; what it states is another question."""
    return _BEGIN.match(text) is not None


def names(text: str) -> bool:
    """Whether a text is about NVIDIA's driver at all, and not one of its words that are known to state nothing."""
    return _NAMES.search(text) is not None and _STATES_NOTHING.search(text) is None


def _nothing(_: str) -> Iterable[str]:
    return ()


class Facts:
    """Kernel text → what it states about GPUs. Remembers a failed probe's address for some records.

    ``behind`` tells which GPUs are at or behind a PCI address; without it a port's errors state nothing.
    """

    def __init__(self, behind: Callable[[str], Iterable[str]] = _nothing) -> None:
        self._behind = behind
        self._address, self._left = "", 0

    def of(self, text: str) -> Iterator[Fact]:
        """Signal, PCI address, value and further values; ValueError for an address that is none."""
        self._left -= self._left > 0
        if not (spoken := _BEGIN.match(text)):
            return
        text = text[spoken.end() :]
        for line in (_NEXT_XID if _XID.match(text) else _NEW_LINE).split(text):
            yield from self._said(line.strip())

    def _said(self, line: str) -> Iterator[Fact]:
        """What one line of a record of the driver's states."""
        if xid := _XID.match(line):
            code = int(xid[3])
            yield Signal.XID, normalise_pci(xid[1]), code, details(xid[2], line[xid.end() :], code)
        elif switch := _SXID.match(line):
            values: dict[str, Value] = {"fatal": int(switch[3] == "Fatal")}
            if switch[4]:
                values["link"] = int(switch[4])
            yield Signal.SXID, normalise_pci(switch[1]), int(switch[2]), values
        elif lost := _LOST.match(line):
            yield Signal.LOST, normalise_pci(lost[1]), None, {}
        elif port := _PORT.match(line):
            for pci in self._behind(normalise_pci(port[2] or port[1])):
                yield Signal.DRIVER, pci, Words.LINK_GONE, {}
        elif said := next(((words, m) for words, form in _WORDS if (m := form.match(line))), None):
            words, found = said
            yield Signal.DRIVER, normalise_pci(found[1]) if found.lastindex else "", words, {}
        else:
            if probe := _PROBE.match(line):
                self._address, self._left = normalise_pci(probe[1]), _PROBE_RECORDS
            for end, why in _PROBE_ENDS if self._left else ():
                if end in line:
                    yield (Signal.DRIVER if why else Signal.LOST), self._address, why, {}
                    self._left = 0
