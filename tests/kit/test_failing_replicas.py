"""What clients see through the gateway while replicas hang, fail, leave, are full or lose their GPU."""

from __future__ import annotations

import json
import resource
import threading
from pathlib import Path

import pytest
from checkpoint import Folder
from model import FEATURES, model

from tests.kit.conftest import Front, Start, breakers, infer, metric, until
from tests.kit.stub import Stub


def test_five_failures_open_a_replicas_breaker_and_one_request_tries_it_again(front: Front, stubs: list[Stub]) -> None:
    gateway = front("--breaker-s", 2)
    stubs[0].mode, stubs[0].served = "500", 0
    while stubs[0].served < 5:
        assert infer(gateway) == 200  # repeated elsewhere
    assert breakers(gateway)[stubs[0].port] == "open"
    for _ in range(20):
        assert infer(gateway) == 200
    assert stubs[0].served == 5
    until(lambda: breakers(gateway)[stubs[0].port] == "half_open")
    stubs[0].mode = "hang"  # on trial: however many come, one is sent there
    asking = [threading.Thread(target=infer, args=(gateway,)) for _ in range(12)]
    for thread in asking:
        thread.start()
    until(lambda: stubs[0].served == 6)
    for _ in range(10):
        assert infer(gateway) == 200
    assert stubs[0].served == 6
    stubs[0].release.set()
    for thread in asking:
        thread.join()
    assert breakers(gateway)[stubs[0].port] == "open"
    stubs[0].mode = "ok"
    until(lambda: infer(gateway) == 200 and breakers(gateway)[stubs[0].port] == "closed")


def test_a_replica_that_hangs_costs_its_read_timeout_and_no_failure(front: Front, stubs: list[Stub]) -> None:
    gateway = front("--read-s", 0.3)
    stubs[0].mode = "hang"
    for _ in range(60):
        assert infer(gateway) == 200
    assert breakers(gateway)[stubs[0].port] == "open"


def test_an_answer_that_comes_drop_by_drop_is_as_good_as_none(front: Front, stubs: list[Stub]) -> None:
    """Each drop in time, and no answer: there must be time left to ask another."""
    gateway = front("--read-s", 0.5, "--total-s", 3)
    stubs[0].mode = "drip"
    while not stubs[0].served:
        assert infer(gateway) == 200


def test_a_replica_that_is_gone_costs_nothing_whatever_the_method(front: Front, stubs: list[Stub]) -> None:
    gateway = front()
    stubs[0].close()
    for _ in range(30):
        assert infer(gateway, "/not-repeatable") == 200
    stubs[0] = Stub()  # for the fixture to close


def test_what_was_sent_and_may_not_be_repeated_is_not(front: Front, stubs: list[Stub]) -> None:
    gateway = front()
    for stub in stubs:
        stub.mode, stub.served = "500", 0
    assert infer(gateway, "/order") == 500
    assert sum(stub.served for stub in stubs) == 1
    assert infer(gateway) == 500
    assert sum(stub.served for stub in stubs) == 3  # on two replicas


def test_retries_stay_under_the_budget_while_everything_fails(front: Front, stubs: list[Stub]) -> None:
    gateway = front("--breaker-failures", 1_000_000, "--retry-window-s", 1000)
    for stub in stubs:
        stub.mode = "500"
    for _ in range(200):
        assert infer(gateway) == 500
    sent = sum(stub.served for stub in stubs)
    assert 200 < sent <= 240
    assert metric(gateway, "gateway_retries_total") == sent - 200
    assert metric(gateway, "gateway_retries_refused_total") > 0


def test_a_replica_that_is_full_is_no_failure_of_it(front: Front, stubs: list[Stub]) -> None:
    gateway = front()
    stubs[0].mode = "full"
    for _ in range(30):
        assert infer(gateway, "/order") == 200  # refused unread: even this may go elsewhere
    assert breakers(gateway)[stubs[0].port] == "closed"


def test_out_of_gpu_memory_goes_to_the_smaller_model(start: Start, tmp_path: Path) -> None:
    """Real replicas: the large model's is really out of memory."""
    replicas = []
    for width in (256, 8):
        folder = Folder(tmp_path / str(width))
        folder.claim()
        folder.save(width, model(width).dump)
        replicas.append(start("inference.py", "--folder", folder.path, "--width", width, "--port", 0))
        until(lambda: replicas[-1].request("GET", "/readyz")[0] == 200)
    large, small = replicas
    pages = int(Path(f"/proc/{large.process.pid}/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + (60 << 20)
    resource.prlimit(large.process.pid, resource.RLIMIT_AS, (most, most))
    gateway = start(
        "gateway.py", "--port", 0, "--replicas", f"127.0.0.1:{large.port()}", "--smaller", f"127.0.0.1:{small.port()}"
    )
    until(lambda: gateway.request("GET", "/readyz")[0] == 200)
    row = [0.5] * FEATURES
    assert json.loads(gateway.request("POST", "/infer", {"inputs": [row]})[1])["step"] == 256
    status, body, _ = gateway.request("POST", "/infer", {"inputs": [row] * 100_000})
    assert (status, json.loads(body)["step"]) == (200, 8)
    assert metric(gateway, "gateway_fallbacks_total") == 1
    assert metric(gateway, "gateway_replica_breaker_open") == 0
    small.end()
    status, body, _ = gateway.request("POST", "/infer", {"inputs": [row] * 100_000})
    assert status in (502, 507)
    assert json.loads(gateway.request("POST", "/infer", {"inputs": [row]})[1])["step"] == 256


def test_a_request_that_kills_is_sent_to_two_replicas_at_most(front: Front, stubs: list[Stub]) -> None:
    gateway = front()
    for stub in stubs:
        stub.mode = "kill"
    assert infer(gateway) == 502
    assert sum(stub.served for stub in stubs) == 2


def test_a_request_is_never_repeated_after_a_replica_lost_its_gpu(front: Front, stubs: list[Stub]) -> None:
    gateway = front()
    for stub in stubs:
        stub.mode = "lost"
    status, body, _ = gateway.request("POST", "/infer", b"{}")
    assert (status, "port" in json.loads(body)) == (500, True)
    assert sum(stub.served for stub in stubs) == 1
    assert metric(gateway, "gateway_attempts_total", 'outcome="gpu_lost"') == 1


def test_a_refused_connection_always_fails_over_once(front: Front, stubs: list[Stub]) -> None:
    """However little traffic there is, and whatever else used the budget up."""
    gateway = front("--retry-floor", 0, "--retry-share", 0, "--breaker-failures", 1000, "--connect-s", 20)
    stubs[0].close()
    for _ in range(20):
        assert infer(gateway, "/order") == 200
    assert metric(gateway, "gateway_attempts_total", 'outcome="refused"') > 0
    stubs[0] = Stub()  # for the fixture to close


def test_of_little_traffic_some_retries_are_always_allowed(front: Front, stubs: list[Stub]) -> None:
    gateway = front()
    stubs[0].mode = "500"
    while not stubs[0].served:
        assert infer(gateway) == 200


def test_two_of_three_that_fail_cost_one_request_at_most(front: Front, stubs: list[Stub]) -> None:
    gateway = front()
    assert infer(gateway) == 200  # somebody has answered
    well = next(stub for stub in stubs if stub.served)
    for stub in stubs:
        stub.mode = "ok" if stub is well else "kill"
    assert [infer(gateway) for _ in range(30)] == [200] * 30


def test_what_two_replicas_say_of_one_request_is_the_requests_failure(front: Front, stubs: list[Stub]) -> None:
    gateway = front("--breaker-failures", 2)
    for stub in stubs:
        stub.mode = "500"
    for _ in range(8):
        assert infer(gateway) == 500
    assert set(breakers(gateway).values()) == {"closed"}


def test_what_counts_as_a_failure_is_a_setting(front: Front, stubs: list[Stub]) -> None:
    gateway = front("--breaker-failures", 2, "--failures", "connection,502,503", "--most-open", 1)
    for mode, state in (("500", "closed"), ("502", "open")):
        for stub in stubs:
            stub.mode = mode
        for _ in range(6):
            infer(gateway, "/order")
        assert set(breakers(gateway).values()) == {state}


def test_not_all_replicas_are_left_alone_unless_something_stands_in(front: Front, stubs: list[Stub]) -> None:
    gateway = front("--breaker-failures", 1)
    for stub in stubs:
        stub.mode = "kill"
    for _ in range(10):
        infer(gateway)
    assert sorted(breakers(gateway).values()) == ["closed", "open", "open"]
    for stub in stubs:
        stub.mode = "ok"
    assert infer(gateway) == 200


@pytest.mark.parametrize(("mode", "status"), [("kill", 502), ("hang", 504)])
def test_the_smaller_model_stands_in_while_all_others_are_left_alone(
    front: Front, stubs: list[Stub], mode: str, status: int
) -> None:
    small = stubs[2]
    large = f"127.0.0.1:{stubs[0].port},127.0.0.1:{stubs[1].port}"
    gateway = front("--smaller", f"127.0.0.1:{small.port}", "--breaker-failures", 1, "--read-s", 1, replicas=large)
    stubs[0].mode = stubs[1].mode = mode
    assert infer(gateway) == status  # both have it, which is enough
    for _ in range(10):
        assert infer(gateway) == 200
    assert small.served == 10


def test_the_smaller_model_has_places_of_its_own(front: Front, stubs: list[Stub]) -> None:
    large, small = stubs[0], stubs[2]
    extra = ("--smaller", f"127.0.0.1:{small.port}", "--most-per-replica", 1)
    gateway = front(*extra, replicas=f"127.0.0.1:{large.port}")
    large.mode, small.mode = "507", "hang"
    asking = threading.Thread(target=infer, args=(gateway,))
    asking.start()
    until(lambda: small.served)
    large.mode = "ok"
    assert infer(gateway) == 200  # the large one's place is free
    large.mode = "507"
    assert infer(gateway) == 507  # the smaller one's is not
    small.release.set()
    asking.join()


def test_who_is_refused_is_told_why_and_when_to_come_back(front: Front, stubs: list[Stub]) -> None:
    gateway = front("--breaker-failures", 1, "--most-open", 1, "--breaker-s", 30)
    for stub in stubs:
        stub.mode = "kill"
    for _ in range(3):
        infer(gateway)
    status, body, headers = gateway.request("POST", "/infer", b"{}")
    assert (status, json.loads(body)["error"]) == (503, "every replica failed lately and is left alone")
    assert 20 <= int(headers["retry-after"]) <= 30
    for stub in stubs:
        stub.mode = "full"
    status, _, headers = front().request("POST", "/infer", b"{}")
    assert (status, headers["retry-after"]) == (503, "7")  # the replica's own word


def test_codes_that_say_that_a_replica_has_no_room_are_a_setting(front: Front, stubs: list[Stub]) -> None:
    gateway = front("--full-codes", "429")
    stubs[0].mode = "429"
    for _ in range(20):
        assert infer(gateway, "/order") == 200
    assert breakers(gateway)[stubs[0].port] == "closed"
