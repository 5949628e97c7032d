"""Xids 144 to 150: what is due and whom to look at, by NVIDIA's rows in the table beside this file. Pure."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files

from agent.diagnosis.history import number
from agent.diagnosis.row import Row
from agent.model.fault import Severity
from agent.model.observation import Observation
from agent.model.remedy import Remedy

_BY_ACTION = "XID_154_EVAL"
_DUE = {
    "RESET_GPU": (Severity.FATAL, Remedy.RESET_GPU),
    _BY_ACTION: (Severity.NOTICE, Remedy.CONTACT_SUPPORT),
    "IGNORE": (Severity.NOTICE, Remedy.CONTACT_SUPPORT),
}
_NOBODY = "IGNORE"
_SOFTWARE = "look at the software and at who uses the link: a program or a person brought it down"
LOOK_AT = {
    _NOBODY: "nobody has to look",
    "CONTACT_SUPPORT": "look at this GPU, and report it to its vendor",
    "CHECK_NVLINK_FAILURE_FLOW": "look at the link, the GPU or switch at its other end, and its cable",
    "SYMPATHETIC_REPORT_SOLO": "look at the peer, whose error it mostly follows; report it if it stands alone",
    "REPORT_ISSUE (if seen >1 per day)": "look at this GPU, and report it if it comes more than once a day",
    "INVESTIGATE_LINK_SI": "look at the link: its signal, and the connectors at both ends",
    "INVESTIGATE_LINK_SI_AND_CABLES": "look at the link: its signal and its cable",
    "INVESTIGATE_SW_USER": _SOFTWARE,
    "INVESTIGATE_SW/USER": _SOFTWARE,
    "INVESTIGATE_SW_USER_LINK_SI": f"{_SOFTWARE}; then at the link's signal",
    "INVESTIGATE_PEER_DEVICE": "look at the peer: the GPU or switch at the link's other end",
    "INVESTIGATE_HOST": "look at the host: its driver and firmware",
}
_BITS = range(144, 149)  # of these the error status is a set of bits, of the others a number


@dataclass(frozen=True, slots=True)
class Known:
    """A row of NVIDIA's. In a pattern, 31 to 0 from the left, ``-`` is any bit."""

    code: int
    units: tuple[str, ...]
    patterns: tuple[str, ...]  # of the first word of the details: by drivers before r575, and since
    error_status: int  # the second word
    severity: str  # with a star the line's own word decides
    immediate: str
    starred: str  # what is due instead where that word is fatal
    investigate: str

    def meant(self, code: int, unit: str, intrinfo: int, status: int) -> bool:
        """Whether a line is of this row. A unit's patterns of both times exclude each other, so no line needs one."""
        same = bool(status & self.error_status) if code in _BITS else status == self.error_status
        return code == self.code and unit in self.units and same and any(_fits(one, intrinfo) for one in self.patterns)

    def due(self, fatal: bool) -> str:
        if "*" not in self.severity:
            return self.immediate
        return (self.starred or self.immediate) if fatal else _NOBODY


def _fits(pattern: str, word: int) -> bool:
    return all(wanted in ("-", bit) for wanted, bit in zip(pattern, f"{word & 0xFFFFFFFF:032b}", strict=True))


def _table() -> Iterator[Known]:
    text = files("agent.diagnosis").joinpath("nvlink5.csv").read_text(encoding="utf-8")
    for row in csv.DictReader(text.splitlines()):
        yield Known(
            int(row["code"]),
            tuple(row["unit"].split("/")),
            (row["before_r575"], row["from_r575"]),
            int(row["error_status"], 16),
            row["severity"],
            row["immediate"],
            row["starred"],
            row["investigate"],
        )


ROWS = tuple(_table())


def listed(code: int, row: Row) -> Iterator[tuple[str, Row, int]]:
    """Each of NVIDIA's rows for the code, as the word of its line usually is."""
    for known in (known for known in ROWS if known.code == code):
        since = known.patterns[-1].replace("-", ".")
        name = f"unit {'/'.join(known.units)}, {since} {known.error_status:#x}, {known.severity}"
        due = known.due(known.severity.startswith("Fatal"))
        yield name, row.said(*_due(known, due), _words(known, due)), 1


def _due(known: Known, due: str) -> tuple[Severity, Remedy]:
    severity, remedy = _DUE[due]
    asks_nobody = severity is Severity.NOTICE and known.investigate == _NOBODY
    return severity, Remedy.NONE if asks_nobody else remedy


def _words(known: Known, due: str) -> str:
    if due != _BY_ACTION:
        return LOOK_AT[known.investigate]
    decides = "the driver's recovery action decides what is due"
    return decides if known.investigate == _NOBODY else f"{decides}; {LOOK_AT[known.investigate]}"


def judged(xid: Observation, code: int, row: Row) -> Row | None:
    """The code's row as grave as NVIDIA's gravest row for the line, else as its own word; None without that word."""
    fatal = number(xid, "fatal")
    if fatal is None:
        return None
    link, unit = number(xid, "link"), str(xid.values.get("unit") or "")
    where = [f"unit {unit}" if unit else "", "" if link is None else f"NVLink {link:.0f}"]
    where += [
        str(xid.values.get("severity") or ("Fatal" if fatal else "Nonfatal")),
        "injected" * ("injected" in xid.values),
    ]
    on = f"Xid {code}: {', '.join(filter(None, where))}"
    words = number(xid, "intrinfo"), number(xid, "error_status")
    known = [] if None in words else [k for k in ROWS if k.meant(code, unit, *(int(w or 0) for w in words))]
    if not known:
        remedy = Remedy.RESET_GPU if fatal else row.remedy
        return row.said(Severity.FATAL if fatal else Severity.NOTICE, remedy, f"{on}: no row of NVIDIA's tells more")
    worst = max(known, key=lambda k: _DUE[k.due(bool(fatal))][0])
    due = worst.due(bool(fatal))
    return row.said(*_due(worst, due), f"{on}: {_words(worst, due)}")
