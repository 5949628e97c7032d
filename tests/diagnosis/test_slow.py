"""A driver whose calls take long is no driver that hangs: the polls stretch, and everything is judged, later."""

from __future__ import annotations

from agent.model.fault import Status, Verdict
from agent.model.observation import Observation, Signal
from tests.observe import Judge, alive, ids, reading

GPUS = [f"0000:{bus}:00.0" for bus in range(10, 18)]
A_GPU_S = 34.0  # as many calls at a second each


def slow(seconds: float) -> Observation:
    return Observation(0, "nvml", Signal.SLOW, value=seconds)


def polled(judge: Judge, gpus: list[str], **values: float) -> list[Verdict]:
    """A poll at such a pace, judged once a second as the daemon does; it ends unless it loses some of the GPUs."""
    verdicts = []
    for second in range(1, int(A_GPU_S * len(gpus)) + 1):
        said = [slow(float(second))] if second % 5 == 0 else []
        said += [reading(gpus[second // 34 - 1], **values)] if second % 34 == 0 else []
        verdicts.append(judge.after(1, *said))
    if gpus == GPUS:
        verdicts.append(judge.after(0, alive(poll_ms=1000 * A_GPU_S * len(gpus))))
    return verdicts


def test_at_a_second_a_call_the_node_stays_healthy_and_the_slowness_is_told_once() -> None:
    judge = Judge()
    judge.after(0, *map(reading, GPUS), alive(poll_ms=100.0))
    verdicts = [verdict for _ in range(4) for verdict in polled(judge, GPUS)]
    assert {verdict.status for verdict in verdicts} == {Status.HEALTHY}
    assert not any(verdict.blind for verdict in verdicts)
    assert ids(verdicts[-1]) == ["driver-slow@node"]
    began = next(i for i, verdict in enumerate(verdicts) if verdict.faults)
    assert began < 90
    assert len({fault.finding.message for verdict in verdicts for fault in verdict.faults}) == 1
    twice = [*polled(judge, GPUS, remapped_rows_failure=1), *polled(judge, GPUS, remapped_rows_failure=1)]
    assert twice[-1].status is Status.UNHEALTHY, "what is seen counts as ever"


def test_a_slow_first_poll_makes_no_fault_and_the_node_is_healthy_once_it_is_over() -> None:
    judge = Judge()
    verdicts = polled(judge, GPUS)
    assert {verdict.status for verdict in verdicts[:-1]} == {Status.UNKNOWN}
    assert not any(verdict.faults for verdict in verdicts[:30])
    assert verdicts[-1].status is Status.HEALTHY
    assert ids(verdicts[-1]) == ["driver-slow@node"]


def test_a_slow_source_that_crashes_at_one_gpu_in_each_poll_is_silent_as_a_quick_one() -> None:
    judge = Judge()
    judge.after(0, *map(reading, GPUS), alive(poll_ms=100.0))
    verdicts = [verdict for _ in range(4) for verdict in polled(judge, GPUS[:4])]
    assert verdicts[-1].status is Status.DEGRADED
    assert "nvml-silent@node" in ids(verdicts[-1])


def test_a_gpu_of_which_slow_polls_say_nothing_is_missed_after_the_poll_in_which_it_is_not_read() -> None:
    judge = Judge()
    judge.after(0, *map(reading, GPUS), alive(poll_ms=100.0))
    polled(judge, GPUS)

    def without_one() -> Verdict:
        polled(judge, GPUS[:-1])
        return judge.after(0, alive(poll_ms=1000 * A_GPU_S * len(GPUS[:-1])))

    assert without_one().status is Status.HEALTHY, "it may come with the next"
    verdict = without_one()
    assert verdict.blind_lines == (f"GPU {GPUS[-1]}: not read for over 60 s",)
