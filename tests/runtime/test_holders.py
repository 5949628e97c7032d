"""Which pod holds the bad GPU: whoever does leaves, whoever can't be moved is waited for, and no word saves a pod."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from agent.model.devices import Device, Published
from agent.model.errors import UnaskedError
from agent.model.fault import Card
from agent.model.world import Pod, World
from agent.runtime.pod_gpus import Holders, PodGpus, with_gpus
from tests.actions.test_kube import MERGE
from tests.life import UUID, Life
from tests.observe import OTHER
from tests.remediation.test_repair import returned

BAD, GOOD = "GPU-aaaaaaaa-0000-0000-0000-000000000001", "GPU-aaaaaaaa-0000-0000-0000-000000000002"
WELL = f"GPU-{OTHER}"


@pytest.mark.parametrize(
    ("requests", "told", "claims", "runs_on", "held"),
    [
        (True, {BAD}, (), "", {BAD}),
        (True, {BAD}, (GOOD,), "", {BAD, GOOD}),
        (True, {GOOD}, (BAD,), "", {BAD, GOOD}),
        (True, {GOOD}, (), BAD, {BAD, GOOD}),
        (True, (), (GOOD,), GOOD, None),  # the kubelet doesn't tell: it may hold any
        (True, None, (GOOD,), "", None),
        (True, {GOOD}, None, "", None),
        (False, {BAD}, (), "", {BAD}),
        (False, (), (BAD,), "", {BAD}),
        (False, (), (), BAD, {BAD}),
        (False, None, (), "", None),
        (False, (), None, "", None),
    ],
)
def test_a_pod_holds_what_anybody_says_that_it_holds(
    requests: bool, told: set[str] | tuple[()] | None, claims: tuple[str, ...] | None, runs_on: str, held: Any
) -> None:
    pod = Pod("a", "b", "uid", gpu=requests, claims=None if claims is None else frozenset(claims))
    clients = {runs_on: {"4711": "uid", "4712": ""}} if runs_on else {GOOD: {"1": "other"}}
    holders = {"a/b": None if told is None else frozenset(told)}
    (found,) = with_gpus(World("n1", "u", pods=(pod,)), holders, clients, {}).pods or ()
    assert (found.gpu, found.gpus) == (True, held)


@pytest.mark.parametrize(
    ("devices", "held"),
    [
        (("gpu-0",), {BAD}),
        (("gpu-1-mig",), {GOOD}),  # known by its GPU's address
        (("gpu-0", "gpu-1-mig"), {BAD, GOOD}),
        (("nic-0",), set()),
        (("gpu-7",), None),  # in no slice: it may be any
        (None, None),
    ],
)
def test_a_pod_holds_what_its_claims_were_given_where_the_kubelet_is_silent(
    devices: tuple[str, ...] | None, held: set[str] | None
) -> None:
    def device(name: str) -> Device:
        return Device("nic.example" if name.startswith("nic") else "gpu.nvidia.com", "n1", name)

    given = None if devices is None else frozenset(map(device, devices))
    published = (Published(device("gpu-0"), BAD), Published(device("gpu-1-mig"), "MIG-1", OTHER))
    world = World("n1", "u", pods=(Pod("a", "b", "uid", gpu=True, devices=given),), devices=published)
    (found,) = with_gpus(world, None, {}, {OTHER: Card(GOOD)}).pods or ()
    assert found.gpus == held


def test_a_pod_of_which_nobody_says_that_it_holds_a_gpu_holds_none() -> None:
    pod = Pod("a", "b", "uid")
    assert with_gpus(World("n1", "u", pods=(pod,)), None, {GOOD: {"1": "other"}}, {}).pods == (pod,)


def add(life: Life, name: str, owner: str = "Job", gpus: int = 0, **metadata: Any) -> str:
    """A pod of the namespace a; its UID."""
    life.cluster.add_pod("a", name, "n1", gpus=gpus, owner=owner)
    if metadata:
        life.cluster("PATCH", f"/api/v1/namespaces/a/pods/{name}", {"metadata": metadata}, MERGE)
    return str(life.cluster.read("pods", name, "a")["metadata"]["uid"])


def told(life: Life, **holders: tuple[str, ...]) -> None:
    life.resources = {"research/train": (UUID,), **{f"a/{name}": uuids for name, uuids in holders.items()}}


MIRROR = {"annotations": {"kubernetes.io/config.mirror": "x"}}


@pytest.mark.parametrize("readable", [True, False])
@pytest.mark.parametrize("kind", ["DaemonSet", "Node"])
@pytest.mark.parametrize("requests", [0, 1])
def test_under_a_daemonsets_or_a_static_pod_on_the_bad_gpu_no_reset_begins_and_it_is_named(
    kind: str, requests: int, readable: bool
) -> None:
    life = Life(95)
    uid = add(life, "monitor", kind, requests, **(MIRROR if kind == "Node" else {}))
    told(life, monitor=(UUID,))
    life.clients = {UUID: {"4711": uid}} if readable else {}
    life.run(300)
    assert (life.repairs, "monitor" in life.cluster.pods_on("n1")) == ([], True)
    assert life.cluster.evicted == ["research/train"]
    assert [why for why in life.waits if "pod a/monitor may hold the bad GPU and would come straight back" in why]
    assert not any(holder.startswith("n1/") and "draining" in holder for holder in life.holders())
    told(life, monitor=(WELL,))
    life.clients = {}
    life.run(300)
    assert (life.repairs, returned(life)) == (["reset_gpu"], True)


def test_a_daemonsets_pod_that_requests_a_gpu_is_waited_for_where_nobody_tells_which() -> None:
    life = Life(95)
    add(life, "monitor", "DaemonSet", 1)
    life.run(300)
    assert life.repairs == []
    assert "pod a/monitor may hold the bad GPU" in " ".join(life.waits)


def test_a_daemonsets_pod_on_a_gpu_is_in_the_way_of_no_reboot() -> None:
    life = Life(79)
    add(life, "monitor", "DaemonSet", 1)
    told(life, monitor=(UUID,))
    life.run(300)
    assert (life.repairs, returned(life)) == (["reboot_node"], True)


@pytest.mark.parametrize("how", ["the kubelet tells", "a process is on it"])
def test_a_pod_that_holds_the_bad_gpu_without_a_request_leaves(how: str) -> None:
    life = Life(95)
    bad, well = add(life, "visible-devices", "Deployment"), add(life, "elsewhere", "Deployment")
    if how == "the kubelet tells":
        told(life, **{"visible-devices": (UUID,), "elsewhere": (WELL,)})
    else:
        told(life)
        life.clients = {UUID: {"4711": bad}, WELL: {"4712": well}}
    life.run(20)
    assert sorted(life.cluster.evicted) == ["a/visible-devices", "research/train"]


LONG = "GPU-00001b00-0000-0000-0000-000000000000"  # as annotations have it


@pytest.mark.parametrize("key", ["hami.io/vgpu-devices-allocated", "volcano.sh/vgpu-ids-new"])
def test_what_sharing_schedulers_write_on_a_pod_makes_it_leave_and_never_stay(key: str) -> None:
    life = Life(0)
    bad, good = LONG, LONG.replace("1b", "43")
    life.uuids = {pci: good if pci == OTHER else bad for pci in life.uuids}
    life.run(200)  # other cards in the slots
    add(life, "named", gpus=1, annotations={key: f"{bad},NVIDIA,4000,30:;"})
    add(life, "elsewhere", gpus=1, annotations={key: f"{good},NVIDIA,4000,30:;"})
    add(life, "lies", gpus=1, annotations={key: f"{good},NVIDIA,4000,30:;"})
    add(life, "other-resource", gpus=0, annotations={key: f"{bad},NVIDIA,4000,30:;"})
    life.resources = {"research/train": (good,), "a/named": (good,), "a/elsewhere": (good,), "a/lies": (bad,)}
    life.breaks(code=95)
    life.run(20)
    assert sorted(life.cluster.evicted) == ["a/lies", "a/named", "a/other-resource"]


def test_a_pod_with_a_card_by_index_alone_may_hold_any() -> None:
    life = Life(95)
    add(life, "by-index", annotations={"volcano.sh/gpu-index": "0"})
    told(life)
    life.run(20)
    assert sorted(life.cluster.evicted) == ["a/by-index", "research/train"]


def test_the_kubelet_is_asked_seldom_while_it_says_the_same() -> None:
    asked: list[float] = []
    now = [0.0]

    def ask() -> Holders:
        asked.append(now[0])
        if now[0] >= 600:
            raise UnaskedError("it is gone")
        return {"a/b": frozenset({BAD})}

    pods = PodGpus(ask, lambda *_, **__: None, lambda: now[0])
    while now[0] < 700:
        now[0] += 5
        pods.now(keep_off=False)
    assert [later - before for before, later in pairwise(asked)][:4] == [10, 20, 40, 60]
    assert asked[-1] - asked[-2] <= 40, "what changed is asked for again soon"
    pods.forget()
    before = len(asked)
    pods.now(keep_off=False)
    assert len(asked) == before + 1


def test_a_kubelet_that_hangs_is_not_waited_for_again_at_once() -> None:
    now, asked = [0.0], [0]

    def ask() -> Holders:
        asked[0] += 1
        now[0] += 10
        raise UnaskedError("no answer within 10 s")

    pods = PodGpus(ask, lambda *_, **__: None, lambda: now[0])
    for _ in range(9):
        pods.now(keep_off=False)
        now[0] += 1
    assert asked == [1]
