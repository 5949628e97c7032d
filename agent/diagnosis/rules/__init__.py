"""Every rule, in reading order. A rule is a row of a table and the function ``find`` of its file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from agent.config.limits import Limits
from agent.diagnosis.history import History
from agent.diagnosis.row import TABLE, Row
from agent.diagnosis.rules import (
    blame,
    clocks,
    dcgm,
    disagreement,
    kernel,
    links,
    memory,
    old_records,
    presence,
    recovery,
    silence,
    slowness,
    temperature,
    xid,
)
from agent.model.fault import Finding

Rule = Callable[[History, Limits], Iterable[Finding]]
RULES: tuple[Rule, ...] = (
    old_records.find,  # before what is seen now, whose word on the same fault is the later one
    presence.find,
    xid.find,
    recovery.find,
    memory.find,
    temperature.find,
    clocks.find,
    links.find,
    kernel.find,
    dcgm.find,
    disagreement.find,
    blame.find,
    silence.find,
    slowness.find,
)
ROWS: Mapping[str, Row] = {
    **TABLE,
    **{row.rule: row for rows in (xid.ROWS, kernel.ROWS, dcgm.ROWS, silence.ROWS) for row in rows},
}
