"""The act loop's part of a Snapshot: what was done, what is waited for, and how the node stands in the cluster."""

from __future__ import annotations

from typing import Any

from agent.config.settings import Budget, Config
from agent.model.errors import MalformedError
from agent.model.names import HARD_TAINT, STATE_LABEL
from agent.model.world import PermitKind, World
from agent.remediation.budget import allowed
from agent.remediation.ledger_json import load
from agent.remediation.recurrence import coming
from agent.remediation.taints import effect_on
from agent.runtime.exchange import Acted
from agent.status.snapshot import PermitsView

_SHOWN = (PermitKind.WITHDRAWN, PermitKind.DRAINING)  # held for as long as a node is out; an hourly one is used at once


def view(acted: Acted, config: Config, restored: bool, boot_id: str) -> dict[str, Any]:
    """``restored``: the faults of the agent's last life are known again; the Node is told of together with them."""
    return {
        "keep_off": acted.keep_off,
        "treatment": acted.treatment,
        "api_failures": acted.failures,
        "checkpoints": acted.checkpoints,
        "checkpoint_wait_s": acted.checkpoint_wait_s,
        "steps": acted.steps,
        "waits": (*acted.waits, *(acted.lacks or ())),
        "done": acted.done,
        "failed": acted.failed,
        "requests": acted.requests,
        "look_s": acted.look_s,
        **(_standing(acted.world, acted.looked_at, config) if acted.world and restored else {}),
        **(_past(acted.world, acted.looked_at, boot_id) if acted.world else {}),
    }


def _standing(world: World, looked_at: float, config: Config) -> dict[str, Any]:
    withdrawn = any(taint.key == HARD_TAINT for taint in world.taints)
    permit = world.held(PermitKind.WITHDRAWN)
    return {
        "stage": world.labels.get(STATE_LABEL, ""),
        "withdrawn": withdrawn,
        "degraded_effect": effect_on(world.taints),
        "fences": tuple(fence.words for fence in world.fences),
        "coming": coming(world, config),
        "withdrawn_since": looked_at - permit.taken_s if withdrawn and permit else None,
        "permits": tuple(
            _permits(world, kind, config.budget) for kind in _SHOWN if world.permits is not None and world.pool_size
        ),
    }


def _past(world: World, looked_at: float, boot_id: str) -> dict[str, Any]:
    """None of what nobody can read; a wait tells of it."""
    try:
        ledger = load(world.history)
    except MalformedError:
        return {}
    open_ = ledger.open
    return {"ledger": ledger, "ledger_at": open_.now(boot_id, world.clock_s, looked_at) if open_ else looked_at}


def _permits(world: World, kind: PermitKind, budget: Budget) -> PermitsView:
    taken = sum(bool(permit.holder) for permit in world.permits or () if permit.kind is kind)
    return PermitsView(kind, world.held(kind) is not None, taken, allowed(world, kind, budget))
