"""Every rule, in reading order. A rule is one file with its table ``ROWS`` and one function, ``find``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from agent.config.limits import Limits
from agent.diagnosis import relapse
from agent.diagnosis.history import History
from agent.diagnosis.row import Row
from agent.diagnosis.rules import (
    blame,
    clocks,
    dcgm,
    kernel,
    links,
    memory,
    presence,
    recovery,
    silence,
    temperature,
    xid,
)
from agent.model.fault import Finding

Rule = Callable[[History, Limits], Iterable[Finding]]
RULES: tuple[Rule, ...] = (
    presence.find,
    xid.find,
    recovery.find,
    memory.find,
    temperature.find,
    clocks.find,
    links.find,
    kernel.find,
    dcgm.find,
    blame.find,
    silence.find,
)
ROWS: Mapping[str, Row] = {
    row.rule: row
    for rows in (
        presence.ROWS,
        xid.ROWS,
        recovery.ROWS,
        memory.ROWS,
        temperature.ROWS,
        clocks.ROWS,
        links.ROWS,
        kernel.ROWS,
        dcgm.ROWS,
        blame.ROWS,
        silence.ROWS,
        (relapse.ROW,),
    )
    for row in rows
}
