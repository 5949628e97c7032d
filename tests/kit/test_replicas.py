"""Which replica is asked, which is left alone, how many retries there may be: by themselves, without the gateway."""

from __future__ import annotations

import asyncio
import subprocess
import sys

from hypothesis import given, settings
from hypothesis import strategies as st
from replicas import Limits, Pool
from retry_budget import RetryBudget

from tests.kit.conftest import KIT


def test_a_second_try_goes_to_whoever_answered_last() -> None:
    """Not to one that hangs, which has failed less and looks less busy as long as nobody waited for it."""
    pool = Pool("127.0.0.1:1,127.0.0.2:1,127.0.0.3:1", Limits())
    asyncio.run(pool.resolve())
    hangs, fails, well = pool.replicas
    pool.note(hangs, failed=False)
    pool.note(well, failed=False)
    pool.note(well, failed=True)
    with hangs.use(), well.use(), well.use():
        assert pool.pick([fails]) is well


def test_a_replica_that_had_a_bad_moment_is_not_left_alone_for_one_that_goes_on_failing() -> None:
    """Of three that all stalled, whichever two opened first are left alone; the third may be the worst of them."""
    pool = Pool("127.0.0.1:1,127.0.0.2:1,127.0.0.3:1", Limits(most_open=0.67))
    asyncio.run(pool.resolve())
    well, fails, hangs = pool.replicas
    for replica in (well, fails):
        for _ in range(5):
            pool.note(replica, failed=True)
    answered = 0
    for _ in range(40):
        picked = pool.pick()
        assert picked
        pool.note(picked, failed=picked is not well)
        answered += picked is well
    assert answered >= 25
    assert [one.state for one in (fails, hangs)] == ["open", "open"]


@given(st.lists(st.booleans(), max_size=400))
@settings(max_examples=50, deadline=None)
def test_the_budget_is_a_share_of_the_requests(events: list[bool]) -> None:
    budget, requests, retries = RetryBudget(0.2, 1000), 0, 0
    for is_request in events:
        if is_request:
            budget.count()
            requests += 1
        else:
            allowed = budget.take()
            assert allowed == (retries + 1 <= 0.2 * requests)
            retries += allowed
    assert budget.totals() == (requests, retries)


def test_breakers_and_budget_are_usable_without_the_gateways_libraries() -> None:
    use = """
import asyncio, sys
from replicas import Limits, Pool
from retry_budget import RetryBudget
pool, budget = Pool("127.0.0.1:9,127.0.0.2:9", Limits(failures=1)), RetryBudget(0.5, 10)
asyncio.run(pool.resolve())
first = pool.pick([])
with first.use():
    pool.note(first, failed=True)
budget.count(); budget.count()
assert budget.take() and not budget.take()
assert pool.pick([]) is not first and first.summary()["breaker"] == "open"
assert not {"aiohttp", "prometheus_client"} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", use], cwd=KIT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
