"""Whether a pod that was asked to end should have ended by now: others write its times, and none lengthens a wait."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agent.model.text import unix_s

_LONGEST_GRACE_S = 600.0  # more of a pod's grace keeps nobody else waiting
_STUCK_S = 60.0  # after the grace period, by which the kubelet should have ended it
_LONGEST_KNOWN_S = 10_000_000  # four months: a longer grace period is none, but a way to be asked long ago


def is_over(metadata: Mapping[str, Any], spec: Mapping[str, Any], seen_s: float, now: float) -> bool:
    """``seen_s``: for how long this life has seen it end; ``now``: Unix seconds by the API server's clock, at least.

    An earlier life may have seen it end for longer. When it was asked to, the API server wrote down itself.
    """
    return max(seen_s, now - _asked_at(metadata, now)) > leaves_s(metadata, spec)


def leaves_s(metadata: Mapping[str, Any], spec: Mapping[str, Any]) -> float:
    """How long it may take once it was asked, seconds: its grace period as far as it counts, and a minute."""
    return _grace_s(metadata, spec) + _STUCK_S


def _asked_at(metadata: Mapping[str, Any], now: float) -> float:
    by, grace = unix_s(metadata.get("deletionTimestamp")), metadata.get("deletionGracePeriodSeconds")
    if by is None or not isinstance(grace, int) or not 0 <= grace <= _LONGEST_KNOWN_S:
        return now
    return by - grace


def _grace_s(metadata: Mapping[str, Any], spec: Mapping[str, Any]) -> float:
    """A pod's grace period, as far as it counts."""
    periods = (metadata.get("deletionGracePeriodSeconds"), spec.get("terminationGracePeriodSeconds"), 30)
    grace = next(one for one in periods if isinstance(one, int | float))
    return max(0.0, min(_LONGEST_GRACE_S, grace))  # NaN counts as the longest
