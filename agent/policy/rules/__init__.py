"""Every rule, in reading order. A rule is one file with one function, ``find``."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from agent.config import Limits
from agent.model import Finding
from agent.policy.history import History
from agent.policy.rules import limits, memory, presence, silence, xid

Rule = Callable[[History, Limits], Iterable[Finding]]
RULES: tuple[Rule, ...] = (presence.find, xid.find, memory.find, limits.find, silence.find)
