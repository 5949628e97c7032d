"""The act loop on a cluster in memory: what it learns, and that learning never stands in the way of acting."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import Any

from agent.actions.kube import KubeClient
from agent.config.limits import Limits
from agent.config.settings import Budget, Config, Drain, Mode, Recurrence, Repair
from agent.model.describe import kind
from agent.model.errors import UnreachableError
from agent.model.fault import Verdict
from agent.model.names import HARD_TAINT
from agent.model.observation import Failure, Observation, Signal
from agent.model.steps import GivePermit, On, Report, TakePermit, Wait
from agent.model.world import PermitKind
from agent.runtime.actor import Actor
from agent.runtime.actor_view import view
from agent.runtime.pod_gpus import Holders
from agent.simulation.in_memory_cluster import InMemoryCluster
from tests.actions.test_permits import Clock
from tests.observe import GPU, OTHER, Judge, alive, reading, xid

CONFIG = Config(mode=Mode.EVICT)


def tell(actor: Actor, verdict: Verdict, **more: Any) -> None:
    """As the judging thread does."""
    actor.exchange.judged = replace(actor.exchange.judged, verdict=verdict, **more)


def tried(actor: Actor) -> Actor:
    """With the rights that it needs: it has tried them."""
    actor.exchange.acted = replace(actor.exchange.acted, lacks=())
    return actor


def made() -> InMemoryCluster:
    cluster = InMemoryCluster()
    cluster.add_node("n1")
    cluster.add_pod("a", "train", "n1", owner="Job")
    return cluster


def broken() -> Verdict:
    """A fatal fault; the time in which others may gather is over."""
    judge = Judge()
    judge.now = time.monotonic() - 60
    judge.after(0, alive(), reading())
    return judge.after(1, xid(79))


def test_whose_a_pod_is_is_asked_once_and_kept() -> None:
    cluster = made()
    uid = cluster.read("pods", "train", "a")["metadata"]["uid"]
    actor = tried(Actor(CONFIG, lambda: KubeClient(cluster, "n1", CONFIG), False, lambda *_, **__: None))
    judge = Judge()
    verdict = judge.after(0, alive(), reading())
    for _ in range(5):
        tell(actor, verdict, pods=frozenset({uid, "gone"}))
        actor.round()
    assert actor.exchange.acted.workloads == {uid: "a/Job/train"}
    assert sum(path == "/api/v1/pods" for _, path in cluster.requests) == 2, "once for the pods that were refused"


def test_it_waits_for_the_first_words_of_a_source_and_not_for_one_whose_words_sound_alike() -> None:
    cluster = made()
    actor = Actor(CONFIG, lambda: KubeClient(cluster, "n1", CONFIG), False, lambda *_, **__: None)
    judge = Judge(expected=("nvml", "kmsg"))
    judge.now = time.monotonic() - 60
    judge.after(0, alive(), reading())
    tell(actor, judge.after(1, xid(79)))
    actor.round()
    assert not cluster.read("nodes", "n1")["spec"].get("taints")
    assert [wait.why for wait in actor.exchange.acted.waits] == [
        "every source must be heard once before anything is concluded"
    ]
    blind = Observation(0, "kmsg", Signal.FAILED, value=Failure.UNREADABLE, raw="the log was not heard yet")
    tell(actor, judge.after(1, blind))
    actor.round()
    assert [taint["key"] for taint in cluster.read("nodes", "n1")["spec"]["taints"]] == [HARD_TAINT]


def test_pods_that_may_not_be_read_keep_no_taint_waiting() -> None:
    cluster = made()

    def forbidden(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        if path.startswith("/api/v1/pods?"):
            return 403, {"message": "pods is forbidden"}
        return cluster(method, path, *rest, **more)

    actor = Actor(Config(mode=Mode.TAINT), lambda: KubeClient(forbidden, "n1", CONFIG), False, lambda *_, **__: None)
    judge = Judge()
    judge.after(0, alive(), reading())
    tell(actor, judge.after(1, xid(79)), pods=frozenset({"uid"}))
    actor.round()
    assert [taint["key"] for taint in cluster.read("nodes", "n1")["spec"]["taints"]] == ["gpu-health-agent/unhealthy"]


def test_one_that_waits_for_a_permit_asks_seldom_and_one_that_was_refused_asks_again_soon() -> None:
    cluster = made()
    cluster.add_node("n2")
    bad = broken()
    trouble: list[int] = []

    def server(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        if trouble and method == "POST" and path.endswith("/leases"):
            return 503, {"message": "not now"}
        return cluster(method, path, *rest, **more)

    actors = [
        Actor(CONFIG, partial(KubeClient, server, node, CONFIG), False, lambda *_, **__: None) for node in ("n1", "n2")
    ]
    for actor in actors:
        tell(actor, bad)
    trouble.append(503)
    assert actors[0].round() <= 5
    trouble.clear()
    assert 45 <= actors[0].round() <= 60, "its pod has left, and without a template only a person repairs it"
    assert 45 <= actors[1].round() <= 60


def test_a_spent_budget_and_a_refused_eviction_are_told_apart_without_reading_sentences() -> None:
    cluster = made()
    cluster.add_node("n2")

    def server(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        if path.endswith("/eviction"):
            cause = {"reason": "DisruptionBudget", "message": "the budget a needs 1 healthy pod"}
            return 429, {"message": "Cannot evict pod", "details": {"causes": [cause]}}
        return cluster(method, path, *rest, **more)

    config = Config(mode=Mode.EVICT, drain=Drain(gather_s=0))
    judge = Judge()
    judge.now = time.monotonic() - 60  # every source was heard by now
    judge.after(0, alive(), reading())
    bad = judge.after(1, xid(79))
    views = []
    for node in ("n1", "n2"):
        actor = Actor(config, partial(KubeClient, server, node, config), False, lambda *_, **__: None)
        tell(actor, bad)
        for _ in range(2):
            actor.round()
        views.append(view(actor.exchange.acted, config, restored=True, boot_id=""))
    first, second = views
    assert [wait.on for wait in first["waits"]] == [On.EVICTION]
    assert [wait.on for wait in second["waits"]] == [On.PERMIT]
    assert (first["stage"], first["withdrawn"]) == ("draining", True)
    assert (second["stage"], second["withdrawn"], second["withdrawn_since"]) == ("unhealthy", False, None)
    assert abs(time.time() - first["withdrawn_since"]) < 60
    for one, held in ((first, True), (second, False)):
        permits = next(p for p in one["permits"] if p.kind is PermitKind.WITHDRAWN)
        assert (permits.held, permits.taken, permits.allowed) == (held, 1, 1)


def test_writes_that_a_troubled_server_refuses_open_the_circuit_as_reads_do() -> None:
    cluster, trouble = made(), [503]

    def server(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        if trouble and method == "PATCH":
            return trouble[0], {"message": "not now"}
        return cluster(method, path, *rest, **more)

    actor = Actor(CONFIG, lambda: KubeClient(server, "n1", CONFIG), False, lambda *_, **__: None)
    judge = Judge()
    judge.after(0, alive(), reading())
    tell(actor, judge.after(1, xid(79)))
    pauses = []
    for status in (503, 500, 429, 503, 503, 503):
        trouble[0] = status
        pauses.append(actor.round())
    assert actor.exchange.acted.failures == 6
    assert pauses[0] <= 1
    assert pauses[-1] >= 15
    assert "not now" in actor.exchange.acted.waits[0].why
    assert actor.exchange.acted.failed == {"retaint": 6}
    trouble.clear()
    actor.round()
    assert actor.exchange.acted.failures == 0


def always(status: int, answer: Any) -> Actor:
    """The act loop, of a server that gives one answer to everything."""

    def server(*_: Any, **__: Any) -> tuple[int, Any]:
        return status, answer

    return Actor(CONFIG, lambda: KubeClient(server, "n1", CONFIG), False, lambda *_, **__: None)


def test_a_busy_server_is_left_alone_for_as_long_as_it_asks_and_for_half_a_minute_more_at_most() -> None:
    for asked_s, least, most in ((7, 7, 8), (10**6, 30, 31)):
        actor = always(429, {"message": "Too many requests", "details": {"retryAfterSeconds": asked_s}})
        assert least <= actor.round() <= most
        assert [wait.why for wait in actor.exchange.acted.waits] == ["Too many requests"]


def test_while_the_server_is_away_the_kubelet_tells_who_is_on_the_bad_gpu() -> None:
    def nobody(*_: Any, **__: Any) -> tuple[int, Any]:
        raise UnreachableError("no answer")

    asked: list[str] = []

    def holds() -> Holders:
        asked.append("who holds")
        return {"a/bad": frozenset({f"GPU-{GPU}"}), "a/good": frozenset({f"GPU-{OTHER}"}), "a/mystery": None}

    def how() -> dict[str, str]:
        asked.append("how")
        return {"a/bad": "Running", "a/other": "Running"}

    actor = Actor(CONFIG, lambda: KubeClient(nobody, "n1", CONFIG), False, lambda *_, **__: None, holds, how=how)
    tell(actor, Judge().after(0, alive(), reading()))
    actor.round()
    assert asked == [], "nothing is wrong"
    tell(actor, broken())
    for _ in range(3):
        actor.round()
    waits = [wait.why for wait in actor.exchange.acted.waits]
    assert waits == ["no answer", "pods on the bad GPUs, by their kubelet: a/bad (Running), a/mystery"]
    assert asked == ["who holds", "how"], "each answer serves for a while"


def test_a_round_of_many_slow_requests_is_no_act_loop_that_hangs() -> None:
    cluster, ages = made(), []

    def server(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        time.sleep(0.05)
        ages.append(actor.age_s)
        return cluster(method, path, *rest, **more)

    actor = Actor(CONFIG, partial(KubeClient, server, "n1", CONFIG), False, lambda *_, **__: None)
    tell(actor, broken())
    began = time.monotonic()
    actor.round()
    assert len(ages) > 10
    assert max(ages) < (time.monotonic() - began) / 2


def test_what_is_no_node_is_waited_for_and_no_bug() -> None:
    another = {"name": "n2", "uid": "u", "resourceVersion": "1"}
    for metadata, said in (
        ({}, "metadata.name is missing"),
        ({"name": "n1"}, "metadata.uid is missing"),
        (another, "what answers for node n1 is no Node"),
    ):
        actor = always(200, {"metadata": metadata})
        actor.round()
        assert actor.exchange.acted.failures == 1
        assert said in actor.exchange.acted.waits[0].why


def test_faults_that_arrive_while_they_are_gathered_move_a_gang_once() -> None:
    """Three GPUs fail within a few seconds: no pod leaves before ten seconds after the first, then all at once."""
    cluster = made()
    for name in ("worker-0", "worker-1"):
        cluster.add_pod("a", name, "n1", owner="Job")
    actor = Actor(CONFIG, lambda: KubeClient(cluster, "n1", CONFIG), False, lambda *_, **__: None)
    judge = Judge()
    judge.now = time.monotonic() + 1000  # however slow this machine is, the ten seconds are not over
    addresses = ("0000:1b:00.0", "0000:43:00.0", "0000:52:00.0")
    judge.after(0, alive(), *(reading(pci) for pci in addresses))
    for pci in addresses:
        tell(actor, judge.after(2, xid(95, pci)))
        actor.round()
        assert [taint["key"] for taint in cluster.read("nodes", "n1")["spec"]["taints"]] == [HARD_TAINT]
        assert cluster.evicted == []
    judge.memory = replace(
        judge.memory,
        faults={key: replace(fault, began=fault.began - 2000) for key, fault in judge.memory.faults.items()},
    )
    tell(actor, judge.after(0))
    actor.round()
    assert cluster.evicted == ["a/train", "a/worker-0", "a/worker-1"]


def test_a_pod_that_came_back_three_times_waits_for_a_person_however_often_the_agent_was_restarted() -> None:
    cluster = InMemoryCluster()
    cluster.add_node("n1")
    bad = broken()
    for number in range(6):
        actor = Actor(CONFIG, lambda: KubeClient(cluster, "n1", CONFIG), False, lambda *_, **__: None)
        tell(actor, bad)
        actor.round()
        cluster.add_pod("a", f"stubborn-{number}", "n1", gpus=0)
        owner = [{"kind": "StatefulSet", "name": "stubborn", "controller": True}]
        body = {"metadata": {"ownerReferences": owner}}
        cluster("PATCH", f"/api/v1/namespaces/a/pods/stubborn-{number}", body, "application/merge-patch+json")
        actor.round()
    assert cluster.evicted == ["a/stubborn-0", "a/stubborn-1"]
    assert "came back 3 times" in actor.exchange.acted.waits[-1].why


def test_a_degraded_node_asks_for_a_permit_only_where_it_is_to_get_no_new_pod_and_then_seldom() -> None:
    for wanted, asks in (("PreferNoSchedule", False), ("NoSchedule", True)):
        config = CONFIG.model_copy(update={"policy": Limits.model_validate({"degraded_effect": wanted})})
        cluster = made()
        actor = Actor(config, partial(KubeClient, cluster, "n1", config), False, lambda *_, **__: None)
        judge = Judge()
        judge.after(0, alive(), reading())
        tell(actor, judge.after(0))
        actor.round()
        cluster.requests.clear()
        tell(actor, judge.after(1, xid(63)))
        pause_s = actor.round()
        # The pool's one permit is left to a fatal fault.
        assert cluster.read("nodes", "n1")["spec"]["taints"][0]["effect"] == "PreferNoSchedule"
        assert any("/leases" in path for _, path in cluster.requests) is asks
        assert pause_s > 10


def test_an_idle_degraded_gpu_is_asked_about_again_under_the_taint_and_a_busy_one_seldom() -> None:
    repair = Repair(reset_gpu="reset", reset_when_idle=True)
    config = CONFIG.model_copy(update={"repair": repair, "budget": Budget(max_withdrawn=2)})
    cluster = made()
    cluster.add_node("n2")
    asked: list[bool] = []

    def ask() -> dict[str, frozenset[str]]:
        asked.append(HARD_TAINT in [t["key"] for t in cluster.read("nodes", "n1")["spec"].get("taints") or ()])
        return {"a/train": frozenset({f"GPU-{OTHER}"})}

    actor = Actor(config, lambda: KubeClient(cluster, "n1", config), False, lambda *_, **__: None, ask)
    judge = Judge()
    judge.after(0, alive(), reading())
    degraded = judge.after(1, xid(63))
    tell(actor, degraded, clients={f"GPU-{GPU}": {"4711": ""}})
    actor.round()
    cluster.requests.clear()
    assert actor.round() > 10
    assert (asked, cluster.requests) == ([], [("GET", "/api/v1/nodes/n1")])
    assert [wait.why for wait in actor.exchange.acted.waits] == [
        f"xid-63@{GPU}: its GPU is not reset yet: a process is on it"
    ]
    tell(actor, degraded, clients={f"GPU-{GPU}": {}})
    actor.round()
    assert (asked[0], asked[-1]) == (False, True)
    assert [taint["key"] for taint in cluster.read("nodes", "n1")["spec"]["taints"]] == [HARD_TAINT]
    assert cluster.evicted == []


def permits_of(cluster: InMemoryCluster, node: str) -> list[str]:
    path = "/apis/coordination.k8s.io/v1/namespaces/gpu-health-agent/leases"
    leases = cluster("GET", path)[1]["items"]
    return [lease["metadata"]["name"] for lease in leases if lease["spec"]["holderIdentity"].startswith(f"{node}/")]


def test_a_permit_goes_back_though_its_return_was_refused_or_the_agent_died_before_it() -> None:
    """Between the taint's end and the permit's return nothing else tells that this node still holds one."""
    cluster, trouble = made(), [False]

    def server(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        if trouble[0] and method == "PUT" and "/leases/" in path:
            return 503, {"message": "not now"}
        return cluster(method, path, *rest, **more)

    config, clock = Config(mode=Mode.TAINT, recurrence=Recurrence(enabled=False)), Clock()
    judge = Judge()
    well = judge.after(0, alive(), reading())
    bad = judge.after(1, xid(79))
    for restarts in (False, True):
        actor = Actor(config, lambda: KubeClient(server, "n1", config, clock), False, lambda *_, **__: None)
        tell(actor, bad)
        actor.round()
        assert permits_of(cluster, "n1") == ["gpu-health-agent-withdrawn-gpu-0"]
        trouble[0] = True
        tell(actor, well)
        actor.round()
        assert "taints" not in cluster.read("nodes", "n1")["spec"]
        assert permits_of(cluster, "n1") == ["gpu-health-agent-withdrawn-gpu-0"]
        trouble[0] = False
        if restarts:
            actor = Actor(config, lambda: KubeClient(server, "n1", config, clock), False, lambda *_, **__: None)
            actor.round()
            tell(actor, well)
            actor.round()
            assert permits_of(cluster, "n1"), "a taint that the life before asked for may still arrive"
            clock.now += 301
        actor.round()
        assert permits_of(cluster, "n1") == []
        cluster.requests.clear()
        actor.round()
        assert cluster.requests == [("GET", "/api/v1/nodes/n1")], "a node with nothing of ours reads itself alone"


def test_steps_keep_their_words_in_metrics_whatever_the_code_calls_them() -> None:
    permit = TakePermit(PermitKind.WITHDRAWN, 0), GivePermit(PermitKind.WITHDRAWN, 0)
    assert [kind(step) for step in (*permit, Report(), Wait("why"))] == ["takeslot", "giveslot", "report", "wait"]
