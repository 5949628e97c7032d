"""What a GPU does not give: told once, or counted."""

from __future__ import annotations

from typing import Any

from agent.model.observation import Missing
from agent.runtime.absent_values import NOT_SUPPORTED, AbsentValues
from tests.observe import GPU, OTHER, Judge, alive, reading

NEVER, FAILED = Missing.UNSUPPORTED, Missing.UNREADABLE


def test_what_a_gpu_lacks_is_told_once_and_what_could_not_be_read_is_counted_poll_by_poll() -> None:
    told: list[dict[str, Any]] = []
    absent, judge = AbsentValues(lambda event, **facts: told.append({"event": event, **facts})), Judge()
    values: Any = {"power_w": NEVER, "temperature_c": FAILED}
    for _ in range(3):
        judge.after(5, reading(GPU, **values), reading(OTHER, power_w=NEVER), alive())
        for _ in range(2):  # judged once a second, and a poll counts once
            absent.look(judge.memory.history)
    assert told == [{"event": NOT_SUPPORTED, "value": "power_w", "gpus": [GPU, OTHER]}]
    assert absent.failed == {(GPU, "temperature_c"): 3}
