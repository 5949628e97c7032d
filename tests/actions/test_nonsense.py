"""Answers and pods that make no sense: an answer's nonsense is its failure in words, a pod's is that pod's."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from agent.actions.kube import KubeClient
from agent.actions.removal import release
from agent.config.settings import Config, Drain, Mode
from agent.model.errors import UnreachableError
from agent.model.steps import On, Report
from agent.runtime.actor import Actor
from agent.simulation.in_memory_cluster import InMemoryCluster
from tests.actions.test_kube import EVICT, cluster, drive, fatal
from tests.actions.test_permits import Clock
from tests.actions.test_pods import annotate, change, config, reset, said
from tests.life import Life
from tests.runtime.test_actor import broken, tell

NODE = "/api/v1/nodes/n1"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/gpu-health-agent/leases"
PAUSE = "/api/v1/namespaces/gpu-health-agent/configmaps/gpu-health-agent-pause"


@pytest.mark.parametrize(
    "nonsense",
    [
        {"spec": {"priority": "high"}},
        {"spec": {"priority": float("nan")}},
        {"spec": {"priority": float("inf")}},
        {"spec": {"tolerations": ["all"]}},
        {"spec": {"containers": "one"}},
        {"spec": {"containers": [{"resources": {"limits": [1]}}]}},
        {"spec": {"volumes": [7]}},
        {"spec": {"volumes": [{"persistentVolumeClaim": {"claimName": None}}]}},
        {"spec": 7},
        {"metadata": {"uid": 7}},
        {"status": "Running"},
        {"metadata": {"labels": 7}},
        {"metadata": {"annotations": ["x"]}},
        {"metadata": {"annotations": {"gpu-health-agent/checkpoint": 7}}},
        {"metadata": {"annotations": {"hami.io/vgpu-devices-allocated": 7}}},
        {"metadata": {"ownerReferences": {"kind": "Job"}}},
        {"metadata": {"ownerReferences": [{"controller": True}]}},
        {"metadata": {"namespace": None}},
    ],
)
@pytest.mark.parametrize("whole_node", [False, True])
def test_a_pod_that_can_not_be_read_is_named_and_stays_and_keeps_no_other(
    nonsense: dict[str, Any], whole_node: bool
) -> None:
    made = cluster()
    made.add_pod("research", "odd", "n1", owner="Job")
    odd = made._objects["pods", "research", "odd"]
    for part, more in nonsense.items():
        odd[part] = {**odd[part], **more} if isinstance(more, dict) else more
    here = [key for key in made._objects if key[0] == "pods"]

    def api(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        if "fieldSelector=spec.nodeName" in path:
            return 200, {"items": [made._objects[key] for key in here if key in made._objects]}
        return made(method, path, *rest, **more)

    settings, clock = config(unmanaged="delete"), Clock()
    client, bad = KubeClient(api, "n1", settings, clock), fatal() if whole_node else reset()
    drive(client, bad, settings)
    assert made.evicted == ["research/train"]
    (why,) = [why for why in said(client, bad, settings) if "/odd" in why]
    assert "can't be read" in why
    assert why.endswith("a person must look at it")
    assert client.workloads().keys() == {made.read("pods", "exporter", "kube-system")["metadata"]["uid"]}


LEAST = {"metadata": {"name": "n1", "uid": "u"}, "spec": {}, "status": {}}


@pytest.mark.parametrize(
    ("what", "answer"),
    [
        (NODE, []),
        (NODE, "hello"),
        (NODE, None),
        (NODE, {}),
        (NODE, {"metadata": None}),
        (NODE, {"metadata": {"name": "n1"}}),
        (NODE, {"metadata": {"uid": 7, "name": "n1"}}),
        (NODE, {**LEAST, "spec": []}),
        (NODE, {**LEAST, "spec": {"taints": "none"}}),
        (NODE, {**LEAST, "spec": {"taints": [{"key": "x"}]}}),
        (NODE, {**LEAST, "status": {"conditions": [{"status": "True"}]}}),
        (NODE, {**LEAST, "metadata": {**LEAST["metadata"], "labels": {"gpu-health-agent/managed": False}}}),
        (NODE, {**LEAST, "metadata": {**LEAST["metadata"], "annotations": ["x"]}}),
        (LEASES, []),
        (LEASES, {"items": None}),
        (LEASES, {"items": [{"metadata": {"name": "x", "resourceVersion": 7}}]}),
        (LEASES, {"items": [{"metadata": {"name": "x", "resourceVersion": "7"}, "spec": "mine"}]}),
        ("/api/v1/nodes", []),
        ("/api/v1/nodes", {"rows": []}),
        ("/api/v1/nodes", {"columnDefinitions": [{"name": "Name"}, {"name": "Status"}], "rows": [{"cells": ["n1"]}]}),
        ("/api/v1/nodes", {"columnDefinitions": [{"name": "Name"}], "rows": []}),
        (PAUSE, []),
        (PAUSE, {"data": ["paused"]}),
        ("/api/v1/pods", []),
        ("/api/v1/pods", {}),
        ("/api/v1/pods", {"items": None}),
        ("/api/v1/pods", {"items": {"a": 1}}),
        ("/api/v1/pods", {"items": [None]}),
        ("/api/v1/pods", {"items": [{"metadata": None}]}),
        ("/api/v1/pods", {"items": [{"metadata": {"uid": "x"}}]}),
    ],
)
def test_an_answer_that_makes_no_sense_is_that_answers_failure_and_no_bug(what: str, answer: Any) -> None:
    made, odd = cluster(), [False]

    def api(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        if odd[0] and method == "GET" and path.partition("?")[0] == what:
            return 200, answer
        return made(method, path, *rest, **more)

    settings = Config(mode=Mode.EVICT, drain=Drain(gather_s=1000))
    actor = Actor(settings, partial(KubeClient, api, "n1", settings), False, lambda *_, **__: None)
    tell(actor, broken())
    actor.round()
    odd[0], actor._client = True, None  # with nothing that it remembers
    actor.round()
    acted = actor.exchange.acted
    assert (acted.failures, acted.failed) == (1, {"look": 1})
    assert acted.waits[0].why.startswith(f"the API server's answer to GET {what}")
    assert " makes no sense: " in acted.waits[0].why
    assert made.evicted == []
    odd[0] = False
    actor.round()
    assert actor.exchange.acted.failures == 0


def test_a_write_whose_answer_makes_no_sense_may_have_arrived() -> None:
    made = cluster()

    def api(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        status, answer = made(method, path, *rest, **more)
        return (status, []) if method == "PATCH" else (status, answer)

    client = KubeClient(api, "n1", EVICT)
    client.look(closely=False)
    with pytest.raises(UnreachableError, match=r"answer to PATCH /api/v1/nodes/n1/status makes no sense: "):
        client.do(Report(labels={"gpu-health-agent/state": "healthy"}))


def test_a_list_of_budgets_that_makes_no_sense_names_none_and_keeps_no_pod() -> None:
    made, settings = cluster(), config()
    made.add_pod("research", "other", "n1", owner="Job")

    def api(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        if path.endswith("/train/eviction"):
            return 500, {"message": "This pod has more than one PodDisruptionBudget."}
        if path.endswith("/poddisruptionbudgets"):
            return 200, {"items": [{"metadata": {"name": "x"}, "spec": {"selector": {"matchExpressions": [7]}}}]}
        return made(method, path, *rest, **more)

    client = KubeClient(api, "n1", settings)
    drive(client, reset(), settings)
    assert made.evicted == ["research/other"]
    assert said(client, reset(), settings) == [
        "pod research/train may not be evicted yet: This pod has more than one PodDisruptionBudget."
    ]


def test_a_volume_that_could_not_be_read_for_a_moment_keeps_its_pod_for_a_moment() -> None:
    made, settings, busy = cluster(), config(), [True]
    change(made, "train", {"spec": {"volumes": [{"persistentVolumeClaim": {"claimName": "data"}}]}})

    def api(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        if path.endswith("/persistentvolumeclaims/data"):
            return (503, {"message": "not now"}) if busy[0] else (200, {"spec": {}})
        return made(method, path, *rest, **more)

    client = KubeClient(api, "n1", settings)
    drive(client, reset(), settings)
    assert "own disk" in " ".join(said(client, reset(), settings))
    busy[0] = False
    drive(client, reset(), settings)
    assert made.evicted == ["research/train"]


def test_a_tenants_pod_that_bears_our_jobs_name_tells_nothing_of_it() -> None:
    life = Life(95)
    while not life.repairs:
        life.tick()
    (job,) = life.cluster("GET", "/apis/batch/v1/namespaces/gpu-health-agent/jobs")[1]["items"]
    life.cluster.add_pod("research", "liar", "n1", gpus=0, owner="Job")
    labels = {"batch.kubernetes.io/job-name": job["metadata"]["name"], "gpu-health-agent/node-uid": "x"}
    ended = {"exitCode": 15, "finishedAt": "2999-01-01T00:00:00Z"}
    status = {"phase": "Running", "containerStatuses": [{"state": {"terminated": ended}}]}
    change(life.cluster, "liar", {"metadata": {"labels": labels}, "status": status})
    life.tick()
    assert [(one.exit_code, one.finished_at) for one in life.world.jobs or ()] == [(None, 0.0)]


def test_a_pod_that_may_not_be_changed_keeps_no_other_from_its_release() -> None:
    made: InMemoryCluster = cluster()
    made.add_pod("research", "guarded", "n1", owner="Job")
    for name in ("guarded", "train"):
        annotate(made, name, checkpoint_requested_at="2020-01-01T00:00:00Z")

    def api(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        if method == "PATCH" and path.endswith("/pods/guarded"):
            return 403, {"message": "hands off"}
        return made(method, path, *rest, **more)

    told = " ".join(release(api, "gpu-health-agent", "n1"))
    assert "gpu-health-agent/checkpoint-requested-at of pod research/guarded could not be removed (hands off)" in told
    assert "checkpoint-requested-at" not in str(made.read("pods", "train", "research"))


def test_a_pod_that_can_not_be_read_is_a_persons_matter() -> None:
    made = cluster()
    made._objects["pods", "research", "train"]["spec"]["priority"] = "high"
    settings = Config(mode=Mode.EVICT, drain=Drain(gather_s=0))
    actor = Actor(settings, partial(KubeClient, made, "n1", settings), False, lambda *_, **__: None)
    tell(actor, broken())
    actor.round()
    assert [wait.on for wait in actor.exchange.acted.waits] == [On.POD]


def test_an_eviction_is_answered_with_a_status_as_the_api_server_does() -> None:
    made, settings = cluster(), config()

    def api(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        status, answer = made(method, path, *rest, **more)
        success = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}
        return (status, success) if path.endswith("/eviction") else (status, answer)

    client = KubeClient(api, "n1", settings)
    drive(client, reset(), settings)
    assert made.evicted == ["research/train"]
    assert not client.look(closely=True).pending
