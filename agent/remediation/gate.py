"""The gate of a new node: a startup taint that others set, and the agent takes off once all was seen well. Pure.

It is the one thing of others that the agent undoes. It never sets such a taint, and puts none back.
"""

from __future__ import annotations

from agent.model.fault import Status
from agent.model.ownership import GATE_TAINTS
from agent.model.steps import On, Wait
from agent.model.world import Taint
from agent.remediation.case import Case


def standing(case: Case) -> tuple[Taint, ...]:
    """The startup taints that stay as they are."""
    there = tuple(taint for taint in case.world.taints if taint.key in GATE_TAINTS)
    return () if case.config.gate.enabled and _well(case) else there


def kept_closed(case: Case) -> tuple[Wait, ...]:
    """Why a startup taint stays."""
    if not (there := standing(case)):
        return ()
    keys = ", ".join(taint.key for taint in there)
    if not case.config.gate.enabled:
        return (
            Wait(f"the node's startup taint {keys} stays: gate.enabled is off, so a person must remove it", On.STOPPED),
        )
    return (Wait(f"the node's startup taint {keys} stays until every GPU was read, and nothing is wrong"),)


def _well(case: Case) -> bool:
    """Whether all was seen, and nothing is wrong but what is a notice."""
    return case.verdict.status is Status.HEALTHY and not case.verdict.blind
