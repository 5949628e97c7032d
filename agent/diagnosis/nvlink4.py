"""Xid 74: what the seven registers in its line decide, from the table beside this file. Pure."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files

from agent.diagnosis.history import NVLINK4_XID, History, number
from agent.diagnosis.row import Row
from agent.model.fault import Severity
from agent.model.observation import Observation
from agent.model.remedy import Remedy

_JUDGED = (1, 3, 4, 5)  # of the registers, counted from 1
_A_DAY_S = 86400.0
_REGISTERS = re.compile(" ".join(["0x([0-9a-f]{1,8})"] * 7))


@dataclass(frozen=True, slots=True)
class Class:
    """Bits of one register that mean the same; below ``count`` a day on one link they are a notice."""

    register: int
    bits: frozenset[int]
    severity: Severity
    remedy: Remedy
    count: int
    yields: bool  # a notice beside a fatal Xid of the GPU
    meaning: str

    @property
    def name(self) -> str:
        return _named(self.register, self.bits)


def _table() -> Iterator[Class]:
    text = files("agent.diagnosis").joinpath("nvlink4.csv").read_text(encoding="utf-8")
    for row in csv.DictReader(text.splitlines()):
        yield Class(
            int(row["register"]),
            frozenset(map(int, row["bits"].split())),
            Severity[row["severity"].upper()],
            Remedy(row["remedy"]),
            int(row["count"]),
            row["yields"] == "yes",
            row["meaning"],
        )


def _named(register: int, bits: frozenset[int]) -> str:
    return f"register {register}, {'bit' if len(bits) == 1 else 'bits'} {', '.join(map(str, sorted(bits)))}"


CLASSES = tuple(_table())
_KNOWN = {
    register: frozenset[int]().union(*(c.bits for c in CLASSES if c.register == register)) for register in _JUDGED
}


def listed(row: Row) -> Iterator[tuple[str, Row, int]]:
    """Each class as a row of Xid 74, its name before it and how often a day on one link it must come after it."""
    for one in CLASSES:
        yield one.name, row.said(one.severity, one.remedy, one.meaning), one.count


def judged(history: History, xid: Observation, row: Row, beside: bool) -> Row | None:
    """The row of Xid 74 as grave as the gravest bit says; None without registers and link.

    ``beside``: a fatal Xid of the GPU stands beside it.
    """
    raised, link = _raised(xid), number(xid, "link")
    on = f"Xid {NVLINK4_XID}: NVLink {link or 0:.0f}"
    if raised is None:
        said = f"{on}: the driver's line bears no registers that tell more"
        return None if link is None else row.said(row.severity, row.remedy, said)
    found = [_of_class(history, xid, row, one, beside, on) for one in CLASSES if one.bits & raised[one.register]]
    strange = [_named(n, bits) for n in _JUDGED if (bits := raised[n] - _KNOWN[n])]
    if strange or not found:
        what = "; ".join(strange) or "no register that tells more"
        found.append(row.said(row.severity, row.remedy, f"{on}: {what}: NVIDIA's table does not list it: report it"))
    return max(found, key=lambda said: (said.severity, said.remedy.rank))


def _of_class(history: History, xid: Observation, row: Row, one: Class, beside: bool, on: str) -> Row:
    raised = (_raised(xid) or {})[one.register] & one.bits
    message = f"{on}: {_named(one.register, raised)}: {one.meaning}"
    times = max(1, _times(history, xid, one)) if one.count > 1 else 1
    if one.count > 1:
        message += f" ({times} within a day)"
    milder = times < one.count or (one.yields and beside)
    return row.said(Severity.NOTICE if milder else one.severity, one.remedy, message)


def _times(history: History, xid: Observation, one: Class) -> int:
    """How often this link had an error of this class within a day."""
    return sum(
        int(number(other, "repeats") or 1)
        for other in history.detailed.get((xid.pci, NVLINK4_XID), ())
        if other.values.get("link") == xid.values.get("link")
        and history.now - other.arrived <= _A_DAY_S
        and (raised := _raised(other))
        and one.bits & raised[one.register]
    )


def _raised(xid: Observation) -> dict[int, frozenset[int]] | None:
    """Register → its bits that are 1; None where a source says none, or what are none."""
    words = _REGISTERS.fullmatch(str(xid.values.get("registers") or ""))
    if words is None:
        return None
    return {n: frozenset(bit for bit in range(32) if int(words[n], 16) >> bit & 1) for n in _JUDGED}
