"""A node whose GPUs are offered by DRA: counted by its ResourceSlices, at next to no cost, and never in the way."""

from __future__ import annotations

from typing import Any

import pytest

from agent.actions.kube import KubeClient
from agent.actions.rights import needed
from agent.config.settings import Config
from agent.model.world import Offer
from agent.runtime.actor import Actor
from tests.actions.test_kube import MERGE, cluster
from tests.actions.test_permits import Clock
from tests.observe import Judge, alive, reading
from tests.runtime.test_actor import tell

EIGHT = {"devices of gpu.nvidia.com": 8}


def published(
    devices: int = 8, tainted: int = 0, driver: str = "gpu.nvidia.com", generation: int = 1, effect: str = "NoSchedule"
) -> dict[str, Any]:
    """A slice, as the driver publishes it."""
    taints = {"taints": [{"key": "gpu.nvidia.com/xid", "value": "79", "effect": effect}]}
    spec = {
        "driver": driver,
        "nodeName": "n1",
        "pool": {"name": "n1", "generation": generation, "resourceSliceCount": 1},
        "devices": [{"name": f"gpu-{n}", **(taints if n < tainted else {})} for n in range(devices)],
    }
    return {"metadata": {"name": f"n1-{driver}-{generation}"}, "spec": spec}


class ByDra:
    """A cluster in memory whose Nodes offer no GPU of a device plugin, with slices."""

    def __init__(self, *slices: Any, plugin: bool = False) -> None:
        self.made, self.slices = cluster(), list(slices)
        self.answer: tuple[int, Any] | None = None
        self.asked: list[str] = []
        if not plugin:
            gone = {"status": {"capacity": None, "allocatable": None}}
            self.made("PATCH", "/api/v1/nodes/n1", gone, MERGE)

    def __call__(self, method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        if "resourceslices" not in path:
            return self.made(method, path, *rest, **more)
        self.asked.append(path)
        return self.answer or (200, {"items": self.slices})


def offer(server: ByDra) -> Offer:
    return KubeClient(server, "n1", Config()).look(closely=False).offer


@pytest.mark.parametrize(
    ("slices", "withheld"),
    [
        ([published()], {}),
        ([published(tainted=7)], {}),
        ([published(tainted=8)], EIGHT),
        ([published(tainted=8, effect="NoExecute")], EIGHT),
        ([published(tainted=8, effect="None")], {}),  # a rehearsal keeps nobody away
        ([published(4, tainted=4), published(4, tainted=4)], EIGHT),
        ([published(8, generation=1), published(8, tainted=8, generation=2)], EIGHT),  # the older is on its way out
        ([published(driver="compute-domain.nvidia.com", tainted=8)], {}),
        ([], {}),
    ],
)
def test_by_dra_gpus_are_withheld_where_the_driver_has_tainted_every_device(
    slices: list[Any], withheld: dict[str, int]
) -> None:
    assert offer(ByDra(*slices)).withheld == withheld


def test_a_dra_drivers_devices_say_that_there_should_be_gpus() -> None:
    server = ByDra(published())
    server.made("PATCH", "/api/v1/nodes/n1", {"metadata": {"labels": {"nvidia.com/gpu.present": None}}}, MERGE)
    assert offer(server).due == "a DRA driver's 8 devices of gpu.nvidia.com"
    server.slices = []
    assert offer(server).due == ""


def test_slices_that_went_with_their_driver_are_missed_and_soon_seen_again() -> None:
    server, clock = ByDra(published()), Clock()
    client = KubeClient(server, "n1", Config(), clock)

    def seen(after: float) -> tuple[int, Any]:
        clock.now += after
        return len(server.asked), client.look(closely=False).offer.withheld

    assert seen(0) == (0, {})
    server.slices = []
    assert seen(599) == (1, {}), "a healthy node is asked once in ten minutes"
    assert seen(1) == (1, EIGHT)
    assert seen(59) == (2, EIGHT)
    server.slices = [published()]
    assert seen(1) == (2, {}), "where nothing is offered it is asked every minute"
    assert len(server.asked) == 3


def test_slices_are_not_asked_for_where_a_device_plugin_offers_gpus() -> None:
    server = ByDra(published(tainted=8), plugin=True)
    assert offer(server).withheld == {}
    assert server.asked == []
    none = {"status": {"allocatable": {"nvidia.com/gpu": "0"}}}
    server.made("PATCH", "/api/v1/nodes/n1", none, MERGE)
    assert offer(server).withheld == {"nvidia.com/gpu": 8}, "the plugin's are named, as long as no driver offers any"
    server.slices = [published()]
    assert offer(server).withheld == {}, "the kubelet keeps a former plugin's capacity"


def test_only_this_nodes_slices_are_asked_for_and_the_right_to_it_is_declared() -> None:
    server = ByDra()
    offer(server)
    assert server.asked == ["/apis/resource.k8s.io/v1/resourceslices?fieldSelector=spec.nodeName%3Dn1"]
    right = needed("GET", server.asked[0], "gpu-health-agent")
    assert right
    assert (right[0].resource, right[0].optional, right[1]) == ("resourceslices", True, "list")


@pytest.mark.parametrize(
    ("answer", "trouble"),
    [
        ((403, {"message": "resourceslices.resource.k8s.io is forbidden"}), "resourceslices.resource.k8s.io is"),
        ((404, {"message": "the server could not find the requested resource"}), ""),
        ((200, {"items": [{"metadata": {"name": "x"}, "spec": {"driver": "gpu.nvidia.com"}}]}), "makes no sense"),
        ((200, {"items": [published() | {"spec": published()["spec"] | {"devices": 8}}]}), "makes no sense"),
        ((200, {"items": None}), "makes no sense"),
        ((500, {"message": "etcdserver: no leader"}), "no leader"),
    ],
)
def test_slices_that_cannot_be_read_are_no_refusal_are_told_once_and_say_nothing(
    answer: tuple[int, Any], trouble: str
) -> None:
    server = ByDra()
    server.answer = answer
    told: list[tuple[str, str]] = []

    def say(event: str, **facts: str) -> None:
        if "ResourceSlices" in event:
            told.append((event, facts["why"]))

    actor = Actor(Config(), lambda: KubeClient(server, "n1", Config()), False, say)
    tell(actor, Judge().after(0, alive(), reading()))
    actor.round()
    actor.round()
    shown = actor.exchange.acted
    assert (shown.failures, shown.waits, actor.able) == (0, (), True)
    assert shown.world
    assert shown.world.offer.withheld == {}
    assert [trouble in why for _, why in told] == [True] * bool(trouble)


def test_an_answer_that_never_came_takes_nothing_back() -> None:
    server, clock = ByDra(published(tainted=8)), Clock()
    client = KubeClient(server, "n1", Config(), clock)
    assert client.look(closely=False).offer.withheld == EIGHT
    server.answer = (503, {"message": "not now"})
    clock.now += 60
    held = client.look(closely=False).offer
    assert (held.withheld, held.trouble) == (EIGHT, "not now")
