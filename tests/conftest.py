"""The tests that wait longest begin first: the others fit in beside them."""

from __future__ import annotations

import gc

import pytest

gc.set_threshold(100_000)  # the crash schedules make little garbage that only it would find

_LONGEST = ("test_the_main_job_on_simulated_gpus", "test_a_kubelet_that_hangs", "test_a_story_that_goes_wrong")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Stable, so that all else keeps its order; each worker takes a part of the front."""
    items.sort(key=lambda item: not item.name.startswith(_LONGEST))
