"""A source process that crashes, hangs, floods or talks rubbish never takes the agent with it."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from agent.model.observation import Observation
from agent.sources.process.source import Source

GOOD = 'print(\'{"at":"2026-01-01T00:00:00Z","source":"x","signal":"alive"}\', flush=True)\n'


@pytest.fixture
def source() -> Iterator[list[Source]]:
    made: list[Source] = []
    yield made
    for one in made:
        one.close(0.5)


def made(holder: list[Source], code: str, hung_s: float = 60.0) -> Source:
    holder.append(Source("x", lambda _: [sys.executable, "-c", "import os,sys,time,signal\n" + code], hung_s))
    return holder[0]


def turn(source: Source, until: object, timeout_s: float = 5.0) -> list[Observation]:
    """Tick and read as the daemon does, until ``until()`` holds."""
    assert callable(until)
    seen: list[Observation] = []
    end = time.monotonic() + timeout_s
    while not until():
        assert time.monotonic() < end, source.status
        source.tick(time.monotonic())
        seen += source.read(time.monotonic())
        time.sleep(0.005)
    return seen


def test_what_a_source_says_arrives_and_its_age_is_known(source: list[Source]) -> None:
    one = made(source, GOOD + "time.sleep(60)")
    turn(one, lambda: one.status.last_seen is not None)
    assert (one.status.running, one.status.starts, one.status.garbage) == (True, 1, 0)


def test_a_native_crash_is_named_and_the_restart_waits_longer_each_time(source: list[Source]) -> None:
    one = made(source, "os.abort()")
    turn(one, lambda: "SIGABRT" in one.status.trouble)
    assert one.status.pid is None
    now = time.monotonic()
    starts: list[int] = []
    for second in range(200):  # the clock is ours: the process ends at once each time
        one.tick(now + second)
        if one.status.starts > len(starts) + 1:
            starts.append(second)
        while one.status.pid is not None:
            one.read(now + second)
            one.tick(now + second)
    gaps = [b - a for a, b in itertools.pairwise(starts)]
    assert gaps == sorted(gaps)
    assert 60 in gaps


@pytest.mark.parametrize(("signal_", "longest"), [("alive", 1), ("reading", 60)])
def test_only_a_process_that_finishes_polls_is_soon_started_again(
    source: list[Source], signal_: str, longest: int
) -> None:
    one = made(source, GOOD.replace("alive", signal_), hung_s=600)
    clock, gaps = time.monotonic(), []
    for _ in range(9):
        waited = 0
        while one.status.pid is None:
            one.tick(clock)
            clock, waited = clock + 1, waited + 1
        gaps.append(waited - 1)
        clock += 61  # for so long it ran and spoke
        while one.status.pid is not None:
            one.read(clock)
            one.tick(clock + 2)
            time.sleep(0.002)
        clock += 2
    assert gaps == sorted(gaps)
    assert gaps[-1] == longest
    assert bool(one.status.trouble)


def test_last_words_are_read_before_the_end_is_noticed(source: list[Source]) -> None:
    one = made(source, GOOD * 3)
    assert len(turn(one, lambda: one.status.starts == 1 and one.status.pid is None)) == 3


def test_a_silent_process_is_ended_and_only_then_replaced(source: list[Source]) -> None:
    one = made(source, "time.sleep(600)", hung_s=0.2)
    turn(one, lambda: one.status.pid is not None)
    first = one.status.pid
    turn(one, lambda: one.status.pid is None)
    assert "said nothing" in one.status.trouble
    assert first is not None
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)


def test_never_a_second_process_while_the_first_still_lives(source: list[Source]) -> None:
    one = made(source, GOOD + "time.sleep(600)")
    turn(one, lambda: one.status.last_seen is not None)
    pid = one.status.pid
    for _ in range(100):
        one.tick(time.monotonic())
    assert (one.status.pid, one.status.starts) == (pid, 1)


def test_a_flood_is_held_back_in_the_pipe_and_read_in_bounded_bites(source: list[Source]) -> None:
    one = made(source, "while True: os.write(1, b'x' * 65536)")
    turn(one, lambda: one.status.garbage > 0)
    assert one.read(time.monotonic()) == ()
    assert one.status.garbage == 1, "an endless line is one piece of rubbish"


def test_rubbish_between_good_lines_is_counted_and_costs_none_of_them(source: list[Source]) -> None:
    another = GOOD.replace("x", "y")
    long = GOOD.replace('"alive"', '"alive","raw":"' + "x" * 20_000 + '"')
    one = made(source, f"print('nonsense')\n{GOOD}print('[1]')\n{another}{long}{GOOD}")
    seen = turn(one, lambda: one.status.starts == 1 and one.status.pid is None)
    assert (len(seen), one.status.garbage) == (2, 4)


def test_a_program_that_is_not_there_is_said(source: list[Source]) -> None:
    source.append(Source("x", lambda _: ["/no/such/program"], 60))
    source[0].tick(time.monotonic())
    assert "No such file" in source[0].status.trouble


def test_closing_ends_even_a_process_that_ignores_sigterm(source: list[Source]) -> None:
    one = made(source, "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + GOOD + "time.sleep(600)")
    turn(one, lambda: one.status.last_seen is not None)
    pid = one.status.pid
    one.close(0.2)
    assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_killed_agent_leaves_no_source_behind() -> None:
    code = (
        "import sys,time\nfrom agent.sources.process.source import Source\n"
        "s=Source('kmsg',lambda _:[sys.executable,'-m','agent.sources.kmsg','--path','/dev/null'],60)\n"
        "s.tick(time.monotonic())\nprint(s.status.pid,flush=True)\ntime.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as agent:
        assert agent.stdout is not None
        pid = int(agent.stdout.readline())
        time.sleep(0.3)
        agent.send_signal(signal.SIGKILL)
    end = time.monotonic() + 6
    while time.monotonic() < end:
        try:
            with open(f"/proc/{pid}/stat") as stat:
                if stat.read().rpartition(")")[2].split()[0] == "Z":
                    return
        except FileNotFoundError:
            return
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("the source outlived its agent")
