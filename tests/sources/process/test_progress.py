"""A call that hangs is named, and one that is only slow is not."""

from __future__ import annotations

import threading
import time

from agent.model.observation import Observation
from agent.sources.process.progress import CurrentCall


def test_a_call_held_back_for_a_second_by_a_busy_machine_is_no_driver_that_hangs() -> None:
    said: list[Observation] = []
    call, stop = CurrentCall(), threading.Event()
    watching = threading.Thread(target=call.watch, args=(0.2, stop, said.append))
    call.begins("waiting for events")
    watching.start()
    time.sleep(1.0)
    early = list(said)
    time.sleep(1.8)
    stop.set()
    watching.join()
    assert early == []
    assert [one.raw for one in said] == ["the driver does not answer: waiting for events has not returned"]
