"""The tests that wait begin first, in three processes: what computes fills the others, and then theirs."""

from __future__ import annotations

import gc
import os

import pytest

gc.set_threshold(100_000)  # the crash schedules make little garbage that only it would find

_WAITING = (
    ("test_the_main_job_on_simulated_gpus", "test_check_without_a_driver"),
    (
        "test_a_kubelet_that_hangs",
        "test_a_story_that_goes_wrong",
        "test_daemon.py",
        "test_replay.py",
        "test_whichever_call_hangs",
        "test_hung_gpu.py",
    ),
    ("test_drill_marks.py", "test_serving.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """xdist cuts the list into as many equal parts as it has workers."""
    size = len(items) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    for part, names in enumerate(_WAITING):
        waiting = [item for item in items if any(name in item.nodeid for name in names)]
        others = [item for item in items if not any(name in item.nodeid for name in names)]
        items[:] = [*others[: part * size], *waiting, *others[part * size :]]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How much a sweep went through: what it recorded as ``counts``."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == "counts":
                terminalreporter.write_line(str(value))
