"""Every rule, in reading order. A rule is one file with its table ``ROWS`` and one function, ``find``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from agent.limits import Limits
from agent.model import Finding
from agent.policy import relapse
from agent.policy.history import History
from agent.policy.row import Row
from agent.policy.rules import (
    blame,
    clocks,
    dcgm,
    kernel,
    limits,
    links,
    memory,
    presence,
    recovery,
    silence,
    xid,
)

Rule = Callable[[History, Limits], Iterable[Finding]]
RULES: tuple[Rule, ...] = (
    presence.find, xid.find, recovery.find, memory.find, limits.find, clocks.find, links.find, kernel.find, dcgm.find,
    blame.find, silence.find,
)  # fmt: skip
ROWS: Mapping[str, Row] = {
    row.rule: row
    for rows in (
        presence.ROWS,
        xid.ROWS,
        recovery.ROWS,
        memory.ROWS,
        limits.ROWS,
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
