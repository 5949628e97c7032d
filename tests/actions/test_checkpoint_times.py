"""Times that a pod bears are hostile, and an answer belongs to its incident: nobody waits for ever on an old word."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import pytest

from agent.actions.kube import KubeClient
from agent.model.errors import RefusedError
from agent.model.text import rfc3339
from agent.simulation.in_memory_cluster import InMemoryCluster
from tests.actions.test_kube import MERGE, cluster, drive, healthy
from tests.actions.test_permits import Clock
from tests.actions.test_pods import annotate, budget, change, config, reset, said
from tests.observe import START
from tests.waiting import until

SETTINGS = config()
REQUESTED = "gpu-health-agent/checkpoint-requested-at"


class Site:
    """n1 with the pod train, which saves ``way``, and its agent; both clocks are made up."""

    def __init__(self, way: str = "annotation", **annotations: str) -> None:
        self.made, self.clock, self.api = cluster(), Clock(), None
        self.began = self.clock.now
        annotate(self.made, "train", checkpoint=way, checkpoint_timeout_s="120", **annotations)
        self.restart()

    def restart(self) -> None:
        def request(*rest: Any, **more: Any) -> tuple[int, Any]:
            return (self.api or self.made)(*rest, **more)

        self.client = KubeClient(request, "n1", SETTINGS, self.clock, wall=self.wall)

    def wall(self) -> float:
        return START + 10 + self.clock.now

    def later(self, seconds: float, rounds: int = 3) -> None:
        self.clock.now += seconds
        drive(self.client, reset(self.clock.now - self.began), SETTINGS, rounds=rounds)

    def bears(self, name: str = REQUESTED) -> str:
        return str(self.made.read("pods", "train", "research")["metadata"]["annotations"][name])

    @property
    def outcomes(self) -> dict[str, int]:
        return dict(self.client.checkpoints[0])


@pytest.mark.parametrize(
    "text",
    [
        "2999-01-01T00:00:00Z",
        "9999-12-31T23:59:59.999999-23:59",
        "0001-01-01T00:00:00+23:59",
        "2020-01-01T00:00:00Z",
        "nan",
        "1e999",
        "",
        "2026-13-01T00:00:00Z",
    ],
)
@pytest.mark.parametrize("restarts", [False, True])
def test_whatever_time_a_pod_bears_it_is_asked_now_and_has_the_time_that_it_declared(text: str, restarts: bool) -> None:
    site = Site(checkpoint_requested_at=text, checkpoint_saved_at=text)
    site.later(0)
    assert site.bears() == rfc3339(site.wall(), "milliseconds")
    site.later(60)
    if restarts:
        site.restart()
    site.later(59)
    assert site.made.evicted == []
    site.later(2)
    assert (site.made.evicted, site.outcomes) == (["research/train"], {"expired": 1})


def test_a_pod_that_is_asked_anew_by_each_life_of_the_agent_waits_no_longer_than_it_declared() -> None:
    site = Site()
    for number in range(13):
        annotate(site.made, "train", checkpoint_requested_at=None if number % 2 else "2999-01-01T00:00:00Z")
        assert site.made.evicted == []
        site.restart()
        site.later(5)
        site.later(5)
    assert site.made.evicted == ["research/train"]


def test_a_request_outlives_the_agent_and_is_not_written_twice() -> None:
    site = Site()
    site.later(0)
    asked = site.bears()
    site.later(30)
    site.restart()
    site.later(30)
    assert site.bears() == asked
    annotate(site.made, "train", checkpoint_saved_at=rfc3339(site.wall()))
    site.later(5)
    assert (site.made.evicted, site.outcomes) == (["research/train"], {"saved": 1})


@pytest.mark.parametrize("ahead_s", [61, 10**9])
def test_a_save_that_is_dated_in_the_future_is_none(ahead_s: float) -> None:
    site = Site()
    site.later(0)
    annotate(site.made, "train", checkpoint_saved_at=rfc3339(site.wall() + ahead_s))
    site.later(0)
    assert site.made.evicted == []


def returned(site: Site, later_s: float) -> None:
    """The fault ends before its pod may leave, and another one comes later."""
    drive(site.client, healthy(), SETTINGS)
    assert not site.made.read("nodes", "n1", "")["spec"].get("taints")
    assert site.made.evicted == []
    site.clock.now += later_s
    site.client.look(closely=True)
    site.api = None


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("answered", [False, True])
@pytest.mark.parametrize("later_s", [55 * 60, 3 * 86400])
def test_a_pod_that_was_asked_by_annotation_in_an_earlier_incident_is_asked_again(
    restarts: bool, answered: bool, later_s: float
) -> None:
    site = Site()
    site.api = budget(site.made, "train")
    site.later(0)
    if answered:
        annotate(site.made, "train", checkpoint_saved_at=rfc3339(site.wall()))
        site.later(0)
    first = site.bears()
    returned(site, later_s)
    if restarts:
        site.restart()
    site.later(0, rounds=6)
    assert site.bears() > first
    assert (site.made.evicted, site.outcomes) == ([], {})
    annotate(site.made, "train", checkpoint_saved_at=rfc3339(site.wall()))
    site.later(5)
    assert (site.made.evicted, site.outcomes) == (["research/train"], {"saved": 1})


class Trainer(BaseHTTPRequestHandler):
    """Saves at once, or is still at it."""

    asked, answer = 0, 200

    def do_POST(self) -> None:
        Trainer.asked += 1
        self.send_response(Trainer.answer)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


@pytest.fixture
def port() -> Iterator[int]:
    Trainer.asked, Trainer.answer = 0, 200
    server = HTTPServer(("127.0.0.1", 0), Trainer)
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


def over_http(port: int) -> Site:
    site = Site(f"http:{port}/save")
    change(site.made, "train", {"status": {"podIP": "127.0.0.1"}})
    return site


def test_a_pod_that_saved_over_http_in_an_earlier_incident_is_asked_again(port: int) -> None:
    site = over_http(port)
    site.api = budget(site.made, "train")
    site.later(0, rounds=2)
    until(lambda: not site.client.asking)
    site.later(5, rounds=1)
    assert any("may not be evicted" in why for why in said(site.client, reset(), SETTINGS))
    returned(site, 3 * 86400)
    Trainer.answer = 202
    site.later(0, rounds=6)
    until(lambda: not site.client.asking)
    assert (site.made.evicted, Trainer.asked >= 2) == ([], True)


def unwritable(made: InMemoryCluster, *names: str) -> Any:
    """An Api with a webhook that refuses every change of these pods."""

    def api(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        if method == "PATCH" and "/pods/" in path and path.split("/")[-1] in names:
            return 403, {"message": "admission webhook denied the request: hands off"}
        return made(method, path, *rest, **more)

    return api


@pytest.mark.parametrize("way", ["annotation", "http"])
def test_a_pod_whose_annotation_can_not_be_written_is_asked_as_it_can_be_and_waits_no_longer(
    way: str, port: int
) -> None:
    site = over_http(port) if way == "http" else Site()
    Trainer.answer = 202
    site.made.add_pod("research", "other", "n1", owner="Job")
    site.api = unwritable(site.made, "train")
    for _ in range(4):
        with suppress(RefusedError):  # the rounds go on with the others; ``drive`` ends at it
            site.later(5, rounds=3)
    until(lambda: not site.client.asking)
    assert "hands off" in " ".join(said(site.client, reset(), SETTINGS))
    assert (Trainer.asked > 0) is (way == "http")
    site.clock.now += 120
    with suppress(RefusedError):
        site.later(5)
    assert site.made.evicted == ["research/other", "research/train"]


def test_a_time_that_is_no_text_is_that_pods_matter() -> None:
    site = Site()
    path = "/api/v1/namespaces/research/pods/train"
    site.made("PATCH", path, {"metadata": {"annotations": {REQUESTED: 7}}}, MERGE)
    site.later(0)
    assert site.bears() == rfc3339(site.wall(), "milliseconds")
