"""Whose pod was moved finds why where they look: on the pod, and on what controls it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from agent.actions.kube import KubeClient
from agent.config.settings import Config, Drain, Mode
from agent.model.errors import UnreachableError
from agent.model.world import Pod
from agent.remediation.case import treated
from agent.remediation.events import cause
from agent.runtime.actor import Actor
from agent.simulation.in_memory_cluster import InMemoryCluster
from tests.actions.test_kube import EVICT, cluster, drive, fatal
from tests.actions.test_permits import Clock
from tests.observe import GPU, OTHER, Judge, alive, reading, xid
from tests.runtime.test_actor import broken, tell, tried

NOW = Config(mode=Mode.EVICT, drain=Drain(gather_s=0))


def told(made: InMemoryCluster, namespace: str = "research") -> list[dict[str, Any]]:
    return list(made("GET", f"/api/v1/namespaces/{namespace}/events")[1]["items"])


def about(made: InMemoryCluster, namespace: str = "research") -> list[tuple[str, str]]:
    return sorted((one["involvedObject"]["kind"], one["involvedObject"]["name"]) for one in told(made, namespace))


def of(kind: str, name: str, uid: str, version: str = "apps/v1") -> dict[str, Any]:
    return {"apiVersion": version, "kind": kind, "name": name, "uid": uid, "controller": True}


def add(made: InMemoryCluster, name: str, owner: dict[str, Any], **labels: str) -> None:
    made.add_pod("research", name, "n1")
    made._objects["pods", "research", name]["metadata"] |= {"ownerReferences": [owner], "labels": labels}


def guarded(made: InMemoryCluster, refusing: list[bool], method: str, path: str, *rest: Any) -> tuple[int, Any]:
    """With a PodDisruptionBudget, as long as it refuses."""
    if path.endswith("/eviction") and refusing:
        details = {"causes": [{"reason": "DisruptionBudget"}]}
        return 429, {"message": "it would violate the pod's disruption budget.", "details": details}
    return made(method, path, *rest)


def test_a_pod_that_is_moved_has_an_event_that_says_why_and_so_has_its_job() -> None:
    made = cluster()
    uid = made.read("pods", "train", "research")["metadata"]["uid"]
    drive(KubeClient(made, "n1", EVICT), fatal())
    on_job, on_pod = sorted(told(made), key=lambda one: str(one["involvedObject"]["kind"]))
    assert on_pod["involvedObject"] == {
        "apiVersion": "v1", "kind": "Pod", "namespace": "research", "name": "train", "uid": uid,
    }  # fmt: skip
    assert on_job["involvedObject"] == {
        "apiVersion": "batch/v1", "kind": "Job", "namespace": "research", "name": "train", "uid": "uid-of-Job-train",
    }  # fmt: skip
    for one in (on_job, on_pod):
        assert (one["reason"], one["type"]) == ("MovedForGpuFault", "Warning")
        assert one["source"] == {"component": "gpu-health-agent", "host": "n1"}
        assert one["message"] == (
            "pod train was asked to leave node n1 (more: kubectl describe node n1): xid-79@0000:1b:00.0 on "
            "GPU-0000:1b:00.0, remedy reboot_node: Xid 79: GPU no longer answers on PCIe"
        )


def test_a_deployment_is_told_once_however_many_replica_sets_and_pods_it_has() -> None:
    made = cluster()
    for template in ("5d5", "7f7"):
        body = {"metadata": {"name": f"web-{template}", "uid": f"rs-{template}"}}
        body["metadata"]["ownerReferences"] = [of("Deployment", "web", "deployment")]  # type: ignore[assignment]
        made._store("replicasets", "research", body)
        for number in range(2):
            owner = of("ReplicaSet", f"web-{template}", f"rs-{template}")
            add(made, f"web-{template}-{number}", owner, **{"pod-template-hash": template})
    drive(KubeClient(made, "n1", EVICT), fatal())
    kinds = Counter(kind for kind, _ in about(made))
    assert kinds == {"Pod": 5, "Deployment": 1, "Job": 1}
    (one,) = (one["involvedObject"] for one in told(made) if one["involvedObject"]["kind"] == "Deployment")
    assert (one["name"], one["uid"], one["apiVersion"]) == ("web", "deployment", "apps/v1")


@pytest.mark.parametrize(
    ("owner", "expected"),
    [
        (of("StatefulSet", "web", "u"), ("StatefulSet", "web")),
        (of("ReplicaSet", "web", "u"), ("ReplicaSet", "web")),  # nobody has such a ReplicaSet: it may have gone
        (of("Job", "web", "u", "batch/v1"), ("Job", "web")),
        (of("Job", "web", "u", "batch.volcano.sh/v1alpha1"), None),  # another's, of the same kind
        (of("PyTorchJob", "web", "u", "kubeflow.org/v1"), None),
        ({"kind": "Job", "name": "web", "controller": True}, None),
        (of("Job", "web", "", "batch/v1"), None),
    ],
)
def test_an_event_is_on_the_four_controllers_that_kubernetes_has_and_on_no_other(
    owner: dict[str, Any], expected: tuple[str, str] | None
) -> None:
    made = InMemoryCluster()
    made.add_node("n1")
    add(made, "web-0", owner)
    drive(KubeClient(made, "n1", EVICT), fatal())
    assert about(made) == sorted([("Pod", "web-0"), *([expected] if expected else [])])


def test_a_replica_set_that_follows_a_namesake_names_no_deployment() -> None:
    made = cluster()
    body = {"metadata": {"name": "web-5d5", "uid": "another", "ownerReferences": [of("Deployment", "web", "theirs")]}}
    made._store("replicasets", "research", body)
    add(made, "web-0", of("ReplicaSet", "web-5d5", "rs"))
    drive(KubeClient(made, "n1", EVICT), fatal())
    assert ("ReplicaSet", "web-5d5") in about(made)
    assert ("Deployment", "web") not in about(made)


def test_a_storm_writes_a_handful_and_one_that_is_started_anew_writes_none_again() -> None:
    made = cluster()
    for number in range(40):
        add(made, f"one-{number}", of("Job", f"one-{number}", f"u-{number}", "batch/v1"))
    for _ in range(3):
        drive(KubeClient(made, "n1", EVICT), fatal())
    assert Counter(kind for kind, _ in about(made)) == {"Pod": 8, "Job": 16}


def test_no_pod_is_told_of_before_it_was_asked_and_nobody_refused() -> None:
    made, refusing = cluster(), [True]
    client = KubeClient(partial(guarded, made, refusing), "n1", EVICT)
    drive(client, fatal())
    assert about(made) == []
    refusing.clear()
    drive(client, fatal())
    assert about(made) == [("Job", "train"), ("Pod", "train")]


def test_a_node_that_is_withdrawn_again_tells_again_and_as_much() -> None:
    made = cluster()
    client, judge = KubeClient(made, "n1", EVICT), Judge()
    for time in range(2):
        for number in range(9):
            add(made, f"pod-{time}-{number}", of("StatefulSet", "web", "u"))
        drive(client, judge.after(0, alive(), reading()))
        drive(client, judge.after(1, xid(79)))
        judge.dismissed = frozenset({f"xid-79@{GPU}"})
        drive(client, judge.after(1, alive(), reading()))
        judge.dismissed = frozenset()
        judge.after(1, alive(), reading())
    assert Counter(kind for kind, _ in about(made)) == {"Pod": 16, "Job": 1, "StatefulSet": 2}


def test_a_namespace_that_takes_no_event_holds_up_no_other() -> None:
    made = cluster()
    made.add_pod("serving", "web", "n1", owner="StatefulSet")

    def api(method: str, path: str, *rest: Any, **more: Any) -> Any:
        if method == "POST" and path.endswith("/namespaces/research/events"):
            return 403, {"message": "no Event, please"}
        return made(method, path, *rest, **more)

    lines = list[object]()
    actor = Actor(NOW, lambda: KubeClient(api, "n1", NOW), False, lambda _, **facts: lines.append(facts.get("why")))
    tell(tried(actor), broken())
    actor.round()
    assert about(made, "serving") == [("Pod", "web"), ("StatefulSet", "web")]
    assert "could not send Event MovedForGpuFault about Pod research/train: no Event, please" in lines


@pytest.mark.parametrize("status", [403, 404, 429, 500, None])
def test_a_namespace_that_takes_no_event_is_asked_for_half_a_minute_and_not_waited_for(status: int | None) -> None:
    made, clock, posts = cluster(), Clock(), list[float]()
    for number in range(5):
        add(made, f"one-{number}", of("Job", f"one-{number}", f"u-{number}", "batch/v1"))

    def api(method: str, path: str, *rest: Any, **more: Any) -> Any:
        if method == "POST" and path.endswith("/namespaces/research/events") and clock.now < 2000:
            posts.append(clock.now)
            if status is None:
                clock.now += 10
                raise UnreachableError("timed out")
            return status, {"message": "no Event, please"}
        return made(method, path, *rest, **more)

    client = KubeClient(api, "n1", NOW, clock)
    actor = tried(Actor(NOW, lambda: client, False, lambda *_, **__: None))
    tell(actor, broken())
    for _ in range(9):
        actor.round()
        clock.now += 5
    assert 2 <= len(posts) <= 7, "a webhook that hangs costs ten seconds each"
    assert posts[-1] - posts[0] <= 30
    assert len(made.evicted) == 6
    assert actor.exchange.acted.failures == 0
    assert not [wait for wait in actor.exchange.acted.waits if "Event" in wait.why]
    assert [one["reason"] for one in told(made, "default")] == ["Xid79", "Withdrawn"]
    clock.now = 2000.0
    add(made, "late", of("StatefulSet", "late", "late"))
    actor.round()
    actor.round()
    assert about(made) == [("Pod", "late"), ("StatefulSet", "late")], "it may take some by now"


def test_a_namespace_that_stumbled_once_is_not_given_up() -> None:
    made, clock, stumbles = cluster(), Clock(), [True]

    def api(method: str, path: str, *rest: Any, **more: Any) -> Any:
        if method == "POST" and path.endswith("/namespaces/research/events") and stumbles:
            stumbles.clear()
            return 500, {"message": "a moment, please"}
        return made(method, path, *rest, **more)

    client = KubeClient(api, "n1", NOW, clock)
    actor = tried(Actor(NOW, lambda: client, False, lambda *_, **__: None))
    tell(actor, broken())
    for wait_s in (5, 60, 5):
        actor.round()
        clock.now += wait_s
        if wait_s == 60:
            add(made, "late", of("StatefulSet", "late", "late"))
    actor.round()
    assert about(made) == [("Job", "train"), ("Pod", "late"), ("Pod", "train"), ("StatefulSet", "late")]


def test_after_an_eviction_the_next_round_comes_while_the_pod_is_there() -> None:
    made, refusing = cluster(), [True]
    client = KubeClient(partial(guarded, made, refusing), "n1", NOW)
    actor = tried(Actor(NOW, lambda: client, False, lambda *_, **__: None))
    tell(actor, broken())
    assert actor.round() > 1.0
    refusing.clear()
    assert actor.round() <= 1.0
    assert about(made) == []
    assert actor.round() > 1.0
    assert about(made) == [("Job", "train"), ("Pod", "train")]


def test_a_pod_is_told_of_its_own_gpus_fault() -> None:
    judge = Judge()
    judge.after(0, alive(), reading(), reading(OTHER))
    treatment = treated(judge.after(1, xid(79), xid(95, OTHER)))
    assert treatment
    pod = Pod("a", "train", "uid")
    other = replace(pod, gpus=frozenset({f"GPU-{OTHER}"}))
    assert f"95@{OTHER} on GPU-{OTHER}" in cause(other, treatment, "n1").why
    assert f"79@{GPU} on GPU-{GPU}" in cause(pod, treatment, "n1").why
    assert cause(pod, treatment, "n1").incident == cause(other, treatment, "n1").incident


def test_the_condition_that_we_set_on_a_pod_says_it_too() -> None:
    made, said = cluster(), list[dict[str, Any]]()

    def api(method: str, path: str, body: Any = None, *rest: Any, **more: Any) -> tuple[int, Any]:
        said.extend(body["status"]["conditions"] if path.endswith("/pods/train/status") else ())
        return made(method, path, body, *rest, **more)

    config = Config(mode=Mode.EVICT, drain=Drain(eviction="ask_then_delete"))
    drive(KubeClient(api, "n1", config), fatal(), config)
    (condition,) = said
    assert condition["message"].startswith("pod train was asked to leave node n1 (more: kubectl describe node n1): xid")
