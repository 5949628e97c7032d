"""The exploration notices a broken product: each guard taken out, and a schedule that shows what it is for."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from agent.actions.permits import Permits
from agent.remediation import drain, plan
from tests.exploration.fleet import Fleet
from tests.exploration.promises import BrokenError


def _nothing_may_still_arrive(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Permits, "pending", False)


def _every_node_is_drained(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(plan, "drained", lambda *_: True)


def _no_permit_to_drain_is_free(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(drain, "free_permit", lambda *_: None)


def _broken(kinds: str, seed: int) -> str:
    try:
        Fleet(seed, (kinds,)).explore()
    except BrokenError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("mutant", "kinds", "first"),
    [
        (_nothing_may_still_arrive, "overtaken", 101),
        (_every_node_is_drained, "endless-pods", 3),
        (_no_permit_to_drain_is_free, "person", 1),
    ],
)
def test_a_guard_that_is_taken_out_breaks_a_promise(
    mutant: Callable[[pytest.MonkeyPatch], None], kinds: str, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the first of some seeds that meets it: the whole schedules are for the product as it is. It begins where one
    does; what shifts the seeds makes it search."""
    mutant(monkeypatch)
    said = next((said for seed in range(first, first + 60) if (said := _broken(kinds, seed))), "")
    assert said.startswith(("once: ", "evict: ", "permit: ", "free: "))
