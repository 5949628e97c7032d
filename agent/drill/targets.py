"""What each figure of a drill may be at most: a row for each target, which ``--target`` sets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from agent.model.errors import UsageError

TARGETS: Mapping[str, float] = {
    "failed": 0,  # requests, in each exercise but the killed gateway
    "gap-s": 2.0,  # between two answers; in quiet traffic the pause between two requests more
    "kept-s": 0.03,  # by which the median answer on a kept connection is later than on a new one
    "answer-s": 5.0,  # the slowest answer while a replica hangs
    "refused-s": 5.0,  # from the first failed request to the last one when a gateway is killed
    "ready-s": 60.0,
    "taint-s": 10.0,
    "checkpoint-s": 30.0,
    "evicted-s": 60.0,
    "placed-s": 60.0,
    "recover-s": 180.0,
    "steps-asked": 1,  # of work lost where a checkpoint was asked for
    "restarts": 1,  # of the ranks whose pods stayed, when another rank's leaves
    "steps-apart": 0,  # between the ranks of one training when they go on
    "steps-copied": 0,  # of work lost that the backup had
}


def targets(words: Iterable[str]) -> dict[str, float]:
    """All of them, with those that ``NAME=VALUE`` sets. UsageError."""
    found = dict(TARGETS)
    for word in words:
        name, _, text = word.partition("=")
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if name not in TARGETS or not 0 <= value < 1e9:
            raise UsageError(f"--target: {word} is not NAME=VALUE with a name of {', '.join(TARGETS)}")
        found[name] = value
    return found
