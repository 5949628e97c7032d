"""Rounds that are torn in the middle: by a bug, by a judge that turned meanwhile, by a taint that never came."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from agent.actions.kube import KubeClient
from agent.config.settings import Config, Drain, Mode, Repair
from agent.model.names import FAULTS_ANNOTATION, HARD_TAINT
from agent.recording.recording import Recorder
from agent.runtime.actor import Actor
from agent.simulation.in_memory_cluster import InMemoryCluster
from tests.observe import GPU, Judge, alive, reading, xid
from tests.runtime.test_actor import broken, made, permits_of, tell, tried

NODE = "/api/v1/nodes/n1"


def test_what_was_done_before_a_bug_is_told_and_counted() -> None:
    cluster, said = made(), []

    def server(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        if (method, path) == ("PATCH", f"{NODE}/status"):
            raise KeyError("a bug")
        return cluster(method, path, *rest, **more)

    def hear(what: str, **facts: Any) -> None:
        said.append(facts.get("step", what))

    config = Config(mode=Mode.EVICT)
    actor = Actor(config, lambda: KubeClient(server, "n1", config), False, hear)
    tell(actor, broken())
    actor.round()
    assert [taint["key"] for taint in cluster.read("nodes", "n1")["spec"]["taints"]] == [HARD_TAINT]
    acted = actor.exchange.acted
    assert acted.failed == {"bug": 1}
    assert [wait.why for wait in acted.waits] == ["unexpected KeyError while acting; please report it"]
    assert acted.done == {"takeslot": 1, "retaint": 1}
    assert len(acted.steps) == 2
    assert any("taint the node" in one for one in said)


def test_a_look_that_fails_after_a_bug_takes_nothing_back_that_the_judge_was_told() -> None:
    """Of two looks the older one would be told last: our NVML would begin anew in the midst of a change of MIG."""
    cluster, down = made(), [False]

    def server(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        return (503, {"message": "not now"}) if down[0] and method == "GET" else cluster(method, path, *rest, **more)

    class Broken(Recorder):
        def __init__(self) -> None:
            pass

        def planned(self, *_: Any) -> None:
            raise RuntimeError("a bug")

    config = Config(mode=Mode.EVICT)
    actor = Actor(config, lambda: KubeClient(server, "n1", config), False, lambda *_, **__: None, None, Broken())
    actor.round()  # nothing was judged yet
    cluster("PATCH", NODE, {"metadata": {"labels": {"nvidia.com/mig.config.state": "pending"}}})
    tell(actor, broken())
    actor.round()
    before = actor.exchange.acted
    assert before.keep_off
    down[0] = True
    actor.round()
    assert actor.exchange.acted.keep_off == before.keep_off
    assert actor.exchange.acted.looked_at == before.looked_at


def test_a_permit_goes_back_though_its_taint_was_refused_and_the_fault_ended_meanwhile() -> None:
    cluster, refuses = made(), [True]

    def server(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        if refuses[0] and (method, path) == ("PATCH", NODE):
            return 403, {"message": "no"}
        return cluster(method, path, *rest, **more)

    config = Config(mode=Mode.TAINT)
    judge = Judge()
    judge.now = time.monotonic() - 60
    well = judge.after(0, alive(), reading())
    bad = judge.after(1, xid(79))
    actor = Actor(config, lambda: KubeClient(server, "n1", config), False, lambda *_, **__: None)
    tell(actor, bad)
    actor.round()
    assert permits_of(cluster, "n1") == ["gpu-health-agent-withdrawn-gpu-0"]
    assert not cluster.read("nodes", "n1")["spec"].get("taints")
    refuses[0] = False
    tell(actor, well)
    for _ in range(3):
        actor.round()
    assert permits_of(cluster, "n1") == []


def test_a_reset_is_not_begun_under_an_nvml_that_was_opened_during_the_look() -> None:
    """As after an attempt that failed, with no pause before the next: aside is over for a moment."""
    cluster = InMemoryCluster()
    cluster.add_node("n1")
    config = Config(mode=Mode.EVICT, drain=Drain(gather_s=0), repair=Repair(reset_gpu="reset", pause_s=0))

    def server(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        answer = cluster(method, path, *rest, **more)
        if (method, path) == ("GET", NODE):
            stored = answer[1]["metadata"].get("annotations", {}).get(FAULTS_ANNOTATION, "")
            if '"stage":"reserved"' in stored:  # the judge turns: nobody stood aside at the look before this one
                acted = actor.exchange.acted
                released = acted.look_began if acted.keep_off else None
                actor.exchange.judged = replace(actor.exchange.judged, released=released)
        return answer

    judge = Judge()
    judge.now = time.monotonic() - 60
    judge.after(0, alive(), reading())
    bad = judge.after(1, xid(95))
    actor = tried(Actor(config, lambda: KubeClient(server, "n1", config), False, lambda *_, **__: None))
    tell(actor, bad, released=time.monotonic(), clients={f"GPU-{GPU}": {}})
    actor.round()
    assert actor.exchange.acted.keep_off
    assert not any("cronjobs" in path for _, path in cluster.requests)


def test_a_node_stays_out_while_its_repair_runs_though_every_round_since_ended_in_a_bug() -> None:
    """The fault is dismissed, or cleared, while the reboot's Job waits for its pod: new pods would meet the reboot."""
    cluster, bug = InMemoryCluster(), [False]
    cluster.add_node("n1")
    template = {"spec": {"template": {"spec": {"containers": [{"name": "main", "image": "none"}]}}}}
    cron_job = {"metadata": {"name": "reboot"}, "spec": {"suspend": True, "jobTemplate": template}}
    cluster._store("cronjobs", "gpu-health-agent", cron_job)

    def server(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        if bug[0] and method == "POST" and path.endswith("/events"):  # the last of the steps
            raise KeyError("a bug")
        return cluster(method, path, *rest, **more)

    config = Config(mode=Mode.EVICT, drain=Drain(gather_s=0), repair=Repair(reboot_node="reboot"))
    judge = Judge()
    judge.now = time.monotonic() - 60
    well = judge.after(0, alive(), reading())
    bad = judge.after(1, xid(79))
    actor = Actor(config, lambda: KubeClient(server, "n1", config), False, lambda *_, **__: None)
    tell(actor, well)
    actor.round()
    bug[0] = True
    tell(actor, bad)
    for _ in range(8):
        actor.round()
    assert cluster("GET", "/apis/batch/v1/namespaces/gpu-health-agent/jobs")[1]["items"]
    tell(actor, well)
    for _ in range(2):
        actor.round()
    assert [taint["key"] for taint in cluster.read("nodes", "n1")["spec"].get("taints") or ()] == [HARD_TAINT]
