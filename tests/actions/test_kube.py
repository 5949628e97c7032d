"""What the hands promise, against a cluster in memory: the plan is driven until it rests, and can be cut anywhere."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable
from typing import Any

import pytest

from agent.actions.kube import KubeClient
from agent.config.settings import Budget, Config, Mode
from agent.model.errors import RefusedError
from agent.model.fault import Status, Verdict
from agent.model.remedy import Remedy
from agent.model.steps import Announce, Evict, Retaint, Step, TakePermit, Wait
from agent.model.world import Local
from agent.remediation.plan import plan
from agent.simulation.in_memory_cluster import InMemoryCluster
from tests.observe import Judge, alive, lost, reading, silent, xid

EVICT = Config(mode=Mode.EVICT)
MERGE = "application/merge-patch+json"
FOREIGN = {"key": "example.com/maintenance", "effect": "NoSchedule", "value": "theirs"}


def fatal() -> Verdict:
    judge = Judge()
    judge.after(0, alive(), reading())
    return judge.after(1, xid(79))


def healthy() -> Verdict:
    return Judge().after(0, alive(), reading())


def cluster(*nodes: str) -> InMemoryCluster:
    made = InMemoryCluster()
    for node in nodes or ("n1", "n2"):
        made.add_node(node)
    made.add_pod("research", "train", "n1", owner="Job")
    made.add_pod("kube-system", "exporter", "n1", gpus=0, owner="DaemonSet")
    return made


def drive(
    client: KubeClient, verdict: Verdict, config: Config = EVICT, cuts: Iterable[int] = (), rounds: int = 12
) -> list[Step]:
    """Rounds of look, plan and do; ``cuts`` kills the agent after so many steps of each round."""
    done: list[Step] = []
    limits = iter(cuts)
    for _ in range(rounds):
        steps = plan(verdict, client.look(closely=True), config, Local()).steps
        for step in steps[: next(limits, len(steps))]:
            try:
                client.do(step)
            except RefusedError as refused:
                if refused.status != 409:
                    raise
                break
            done.append(step)
        if all(isinstance(step, Wait) for step in steps):
            break
    return done


def node(made: InMemoryCluster, name: str = "n1") -> dict[str, Any]:
    return made.read("nodes", name)


def taints(made: InMemoryCluster, name: str = "n1") -> list[str]:
    return [t["key"] for t in node(made, name)["spec"].get("taints") or ()]


def holders(made: InMemoryCluster) -> dict[str, str]:
    leases = made("GET", "/apis/coordination.k8s.io/v1/namespaces/gpu-health-agent/leases")[1]["items"]
    return {lease["metadata"]["name"]: lease["spec"]["holderIdentity"].partition("/")[0] for lease in leases}


def test_every_time_is_written_in_the_form_of_its_field() -> None:
    made = cluster()
    drive(KubeClient(made, "n1", EVICT), fatal())
    second, micro = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"
    (condition,) = (c for c in node(made)["status"]["conditions"] if c["type"] == "GpuUnhealthy")
    assert all(re.fullmatch(second, condition[key]) for key in ("lastHeartbeatTime", "lastTransitionTime"))
    path = "/apis/coordination.k8s.io/v1/namespaces/gpu-health-agent/leases"
    leases = [lease["spec"] for lease in made("GET", path)[1]["items"]]
    assert leases
    assert all(re.fullmatch(micro, lease[key]) for lease in leases for key in ("acquireTime", "renewTime"))
    events = made("GET", "/api/v1/namespaces/default/events")[1]["items"]
    assert events
    assert all(re.fullmatch(second, event[key]) for event in events for key in ("firstTimestamp", "lastTimestamp"))


def test_a_fatal_fault_becomes_condition_label_taint_and_eviction() -> None:
    made = cluster()
    drive(KubeClient(made, "n1", EVICT), fatal())
    now = node(made)
    assert {c["type"]: (c["status"], c["reason"]) for c in now["status"]["conditions"]} == {
        "GpuUnhealthy": ("True", "Xid79"),
        "GpuDegraded": ("False", "NoGpuFault"),
    }
    assert now["spec"]["taints"] == [
        {"key": "gpu-health-agent/unhealthy", "value": "reboot_node", "effect": "NoSchedule"}
    ]
    assert now["metadata"]["labels"]["node.kubernetes.io/gpu-error"] == "true"
    assert now["metadata"]["labels"]["gpu-health-agent/state"] == "drained"
    assert made.evicted == ["research/train"]
    assert made.pods_on("n2") == ["train-again"]


def test_the_permit_comes_before_the_taint_and_both_before_any_other_write() -> None:
    steps = plan(fatal(), KubeClient(cluster(), "n1", EVICT).look(closely=True), EVICT, Local(gathered=False)).steps
    assert [type(step) for step in steps[:2]] == [TakePermit, Retaint]


def test_observe_writes_conditions_and_labels_but_never_a_taint_or_an_eviction() -> None:
    made = cluster()
    drive(KubeClient(made, "n1", Config()), fatal(), Config())
    assert (taints(made), made.evicted, holders(made)) == ([], [], {})
    assert node(made)["metadata"]["labels"]["node.kubernetes.io/gpu-error"] == "true"


def test_a_fleet_that_acted_and_only_observes_now_returns_no_broken_node_and_says_what_stands() -> None:
    """As an upgrade does that names no mode."""
    made = cluster()
    drive(KubeClient(made, "n1", EVICT), fatal())
    assert made.evicted
    gone = list(made.evicted)
    client = KubeClient(made, "n1", Config())
    drive(client, fatal(), Config())
    assert (taints(made), made.evicted) == (["gpu-health-agent/unhealthy"], gone)
    assert "gpu-health-agent-withdrawn-gpu-0" in str(holders(made)), "it counts against the budget as before"
    waits = [s.why for s in plan(fatal(), client.look(closely=True), Config(), Local()).steps if isinstance(s, Wait)]
    assert waits == [
        "mode observe: the node stays withdrawn until its cure is proved; no pod is moved and nothing is repaired"
    ]
    drive(client, healthy(), Config())
    assert (taints(made), {*holders(made).values()}) == ([], {""}), "its permits are free again"


def test_taint_mode_evicts_nobody() -> None:
    made, config = cluster(), Config(mode=Mode.TAINT)
    drive(KubeClient(made, "n1", config), fatal(), config)
    assert (taints(made), made.evicted) == (["gpu-health-agent/unhealthy"], [])


def test_without_a_free_permit_nothing_but_the_report_is_written() -> None:
    made = cluster()
    made.add_pod("research", "train-2", "n2", owner="Job")
    drive(KubeClient(made, "n1", EVICT), fatal())
    seconds = itertools.count()
    client = KubeClient(made, "n2", EVICT, lambda: float(next(seconds)))
    drive(client, fatal())
    assert (taints(made, "n2"), made.evicted) == ([], ["research/train"])
    waits = [s.why for s in plan(fatal(), client.look(closely=True), EVICT, Local()).steps if isinstance(s, Wait)]
    assert waits == ["the budget is spent: 1 of 1 taken, by n1 (withdrawn permits, pool of 2 nodes)"]
    drive(KubeClient(made, "n1", EVICT), healthy())
    drive(client, fatal())
    assert taints(made, "n2") == ["gpu-health-agent/unhealthy"], "the permit passes on once n1 is back"


def test_a_cured_node_is_left_clean_but_for_what_others_put_there() -> None:
    made = cluster()
    client = KubeClient(made, "n1", EVICT)
    drive(client, fatal())
    patch = [{"op": "add", "path": "/spec/taints", "value": [*node(made)["spec"]["taints"], FOREIGN]}]
    made("PATCH", "/api/v1/nodes/n1", patch, "application/json-patch+json")
    drive(client, healthy())
    now = node(made)
    assert now["spec"]["taints"] == [FOREIGN]
    assert {c["status"] for c in now["status"]["conditions"]} == {"False"}
    assert now["metadata"]["labels"] == {"nvidia.com/gpu.present": "true", "gpu-health-agent/state": "healthy"}
    assert set(holders(made).values()) == {""}


def test_anothers_taint_added_in_between_survives() -> None:
    made = cluster()
    client = KubeClient(made, "n1", EVICT)
    steps = plan(fatal(), client.look(closely=True), EVICT, Local(gathered=False)).steps
    made(
        "PATCH",
        "/api/v1/nodes/n1",
        [{"op": "add", "path": "/spec/taints", "value": [FOREIGN]}],
        "application/json-patch+json",
    )
    client.do(steps[0])
    with pytest.raises(RefusedError) as refused:
        client.do(steps[1])
    assert refused.value.status == 409
    drive(client, fatal())
    assert taints(made) == ["example.com/maintenance", "gpu-health-agent/unhealthy"]


def test_a_healthy_node_at_rest_is_read_with_one_request_and_never_written() -> None:
    made = cluster()
    client = KubeClient(made, "n1", EVICT)
    drive(client, healthy())
    made.requests.clear()
    for _ in range(5):
        world = client.look(closely=False)
        assert plan(healthy(), world, EVICT, Local()).steps == ()
    assert made.requests == [("GET", "/api/v1/nodes/n1")] * 5


def test_a_condition_that_stays_keeps_its_transition_time() -> None:
    made = cluster()
    client = KubeClient(made, "n1", EVICT)
    drive(client, fatal())
    unhealthy = {"type": "GpuUnhealthy", "lastTransitionTime": "2020-01-01T00:00:00Z", "status": "True"}
    made("PATCH", "/api/v1/nodes/n1/status", {"status": {"conditions": [unhealthy]}}, "application/merge-patch+json")
    judge = Judge()
    judge.after(0, alive(), reading())
    drive(client, judge.after(1, xid(95)))
    now = {c["type"]: c for c in node(made)["status"]["conditions"]}["GpuUnhealthy"]
    assert (now["reason"], now["lastTransitionTime"]) == ("Xid95", "2020-01-01T00:00:00Z")


def test_blind_keeps_everything_as_it_is() -> None:
    made = cluster()
    client = KubeClient(made, "n1", EVICT)
    drive(client, fatal())
    before = node(made)
    blind = Verdict(0, Status.UNKNOWN, Remedy.NONE, blind=silent())
    drive(client, blind)
    now = node(made)
    assert now["spec"] == before["spec"]
    assert now["status"]["conditions"] == before["status"]["conditions"]


def test_a_blind_agent_with_a_degraded_fault_keeps_the_hard_taint_and_every_condition() -> None:
    for mode in Mode:
        made = cluster()
        drive(KubeClient(made, "n1", EVICT), fatal())
        before = node(made)
        judge = Judge()
        judge.after(0, reading(), alive())
        judge.after(1, xid(63))
        verdict = judge.after(300, xid(63, source="kmsg"))
        assert (verdict.status, bool(verdict.blind), verdict.withdraw) == (Status.DEGRADED, True, False)
        config = Config(mode=mode)
        client = KubeClient(made, "n1", config)
        drive(client, verdict, config)
        steps = drive(client, verdict, config)
        now, told = node(made), {c["type"]: c["status"] for c in node(made)["status"]["conditions"]}
        assert now["spec"] == before["spec"], mode
        assert told == {"GpuUnhealthy": "True", "GpuDegraded": "True"}, mode
        assert [step for step in steps if not isinstance(step, Wait)] == [], "and nothing is written anew"


def test_malformed_stored_state_stops_the_agent_and_resets_nothing() -> None:
    for text in ("{", "[]", '{"version":1}', "null"):
        made = cluster()
        body = {"metadata": {"annotations": {"gpu-health-agent/faults": text}}}
        made("PATCH", "/api/v1/nodes/n1", body, "application/merge-patch+json")
        steps = drive(KubeClient(made, "n1", EVICT), fatal(), rounds=3)
        assert all(isinstance(step, Wait) for step in steps)
        assert node(made)["metadata"]["annotations"] == {"gpu-health-agent/faults": text}
        assert taints(made) == []


def test_rolled_back_in_mid_drain_it_reports_what_is_bad_and_leaves_the_rest_to_the_newer_agent() -> None:
    made = cluster()
    client = KubeClient(made, "n1", EVICT)
    drive(client, fatal(), rounds=1)
    newer = {
        "metadata": {"annotations": {"gpu-health-agent/faults": '{"version":2,"anything":[]}'}},
        "status": {"conditions": []},
    }
    made("PATCH", "/api/v1/nodes/n1", newer, MERGE)
    made._objects["nodes", "", "n1"]["status"]["conditions"] = []
    before = holders(made)
    drive(client, fatal())
    assert (made.evicted, taints(made), holders(made)) == ([], ["gpu-health-agent/unhealthy"], before)
    assert {c["type"]: c["status"] for c in node(made)["status"]["conditions"]} == {"GpuUnhealthy": "True"}
    drive(client, healthy())
    assert taints(made) == ["gpu-health-agent/unhealthy"], "a fault that can't be read may still stand"
    assert {c["type"]: c["status"] for c in node(made)["status"]["conditions"]} == {"GpuUnhealthy": "True"}
    assert node(made)["metadata"]["annotations"]["gpu-health-agent/faults"] == '{"version":2,"anything":[]}'


def test_a_taint_whose_reason_was_removed_is_a_persons_to_remove() -> None:
    made = cluster()
    client = KubeClient(made, "n1", EVICT)
    drive(client, fatal(), rounds=2)
    made("PATCH", "/api/v1/nodes/n1", {"metadata": {"annotations": {"gpu-health-agent/faults": None}}}, MERGE)
    drive(client, healthy())
    assert taints(made) == ["gpu-health-agent/unhealthy"]
    assert "gpu-health-agent/faults" not in (node(made)["metadata"].get("annotations") or {})
    drive(client, fatal())
    assert made.evicted == ["research/train"], "a fault that is seen again is acted on"
    drive(client, healthy())
    assert taints(made) == []


def test_upgraded_in_mid_drain_it_goes_on_with_what_the_older_agent_wrote() -> None:
    """The state of the first agents, which knew no repair, no onsets and no dismissals."""
    made = cluster()
    drive(KubeClient(made, "n1", EVICT), fatal(), rounds=1)
    path = "gpu-health-agent/faults"
    data = json.loads(node(made)["metadata"]["annotations"][path])
    old = {key: data[key] for key in ("version", "boot_id", "kernel_seq", "at", "faults")}
    made("PATCH", "/api/v1/nodes/n1", {"metadata": {"annotations": {path: json.dumps(old)}}}, MERGE)
    drive(KubeClient(made, "n1", EVICT), fatal())
    assert made.evicted == ["research/train"]


def test_an_opted_out_node_is_not_written_to() -> None:
    made = cluster()
    made(
        "PATCH",
        "/api/v1/nodes/n1",
        {"metadata": {"labels": {"gpu-health-agent/managed": "false"}}},
        "application/merge-patch+json",
    )
    made.requests.clear()
    drive(KubeClient(made, "n1", EVICT), fatal())
    assert {method for method, _ in made.requests} == {"GET"}


def test_pods_that_nobody_would_start_again_wait_for_a_person() -> None:
    made = cluster()
    made.add_pod("research", "notebook", "n1", owner="")
    client = KubeClient(made, "n1", EVICT)
    drive(client, fatal())
    assert made.evicted == ["research/train"]
    waits = [s.why for s in plan(fatal(), client.look(closely=True), EVICT, Local()).steps if isinstance(s, Wait)]
    assert waits == ["pod research/notebook has no controller to start it again: a person must move it"]


def test_a_pod_that_waits_for_a_person_blocks_no_other_nodes_drain() -> None:
    made = cluster()
    made.add_pod("research", "notebook", "n1", owner="")
    drive(KubeClient(made, "n1", EVICT), fatal())
    assert holders(made) == {"gpu-health-agent-withdrawn-gpu-0": "n1", "gpu-health-agent-draining-gpu-0": ""}


def test_degraded_gets_the_soft_taint_without_permit_and_moves_nobody() -> None:
    judge = Judge()
    verdict = judge.each_poll(10, alive(), reading(remapped_rows_pending=1))
    made = cluster()
    drive(KubeClient(made, "n1", EVICT), verdict)
    assert node(made)["spec"]["taints"] == [{"key": "gpu-health-agent/degraded", "effect": "PreferNoSchedule"}]
    assert (holders(made), made.evicted) == ({}, [])


def test_an_event_is_told_once_even_by_a_restarted_agent() -> None:
    made, verdict = cluster(), fatal()
    for _ in range(3):
        drive(KubeClient(made, "n1", EVICT), verdict)
    events = made("GET", "/api/v1/namespaces/default/events")[1]["items"]
    assert [e["reason"] for e in events] == ["Xid79", "Withdrawn"]


def test_kernel_text_reaches_the_api_server_printable_and_bounded() -> None:
    judge = Judge()
    judge.after(0, alive(), reading())
    verdict = judge.after(1, lost("0000:1b:00.0"), xid(79, raw="\x1b[31m<script>" + "x" * 9000))
    made = cluster()
    drive(KubeClient(made, "n1", EVICT), verdict)
    stored = json.loads(node(made)["metadata"]["annotations"]["gpu-health-agent/faults"])
    assert max(len(raw) for f in stored["faults"] for _, _, raw in f["seen_by"]) <= 200
    assert all(c["message"].isprintable() for c in node(made)["status"]["conditions"])


def test_killed_after_any_write_the_node_is_withdrawn_and_returned_all_the_same() -> None:
    for cuts in itertools.product((0, 1, 2, 9), repeat=3):
        made = cluster()
        for verdict in (fatal(), healthy()):
            limits = iter(cuts)
            for _ in range(8):  # a new process each time: only the cluster remembers
                # What the one before it asked for has arrived by its second look, or never does.
                client = KubeClient(made, "n1", EVICT, itertools.chain((0.0,), itertools.repeat(301.0)).__next__)
                drive(client, verdict, cuts=[next(limits, 9)], rounds=1)
                tainted = "gpu-health-agent/unhealthy" in taints(made)
                assert not tainted or "n1" in holders(made).values(), "a hard taint without a permit"
                assert not made.evicted or tainted or not verdict.withdraw, "an eviction from an untainted node"
            if verdict.withdraw:
                assert (tainted, made.evicted) == (True, ["research/train"])
        assert (taints(made), set(holders(made).values())) == ([], {""})


def test_the_share_of_a_pool_is_at_least_one_and_rounds_down() -> None:
    made = cluster(*(f"n{i}" for i in range(1, 26)))
    config = Config(mode=Mode.EVICT, budget=Budget(max_withdrawn="10%"))
    for i in range(1, 26):
        drive(KubeClient(made, f"n{i}", config), fatal(), config)
    assert sum(bool(taints(made, f"n{i}")) for i in range(1, 26)) == 2


@pytest.mark.parametrize("none", [0, "0%"])
def test_a_budget_of_none_withdraws_no_node_and_says_so(none: int | str) -> None:
    made = cluster(*(f"n{i}" for i in range(1, 26)))
    config = Config(mode=Mode.EVICT, budget=Budget(max_withdrawn=none))
    client = KubeClient(made, "n1", config)
    drive(client, fatal(), config)
    waits = [
        step.why for step in plan(fatal(), client.look(closely=True), config, Local()).steps if isinstance(step, Wait)
    ]
    assert (taints(made, "n1"), waits) == (
        [],
        ["the budget is spent: 0 of 0 taken (withdrawn permits, pool of 25 nodes)"],
    )


def test_evictions_are_asked_with_the_pods_own_uid() -> None:
    made = cluster()
    client = KubeClient(made, "n1", EVICT)
    drive(client, fatal(), rounds=1)
    steps = plan(fatal(), client.look(closely=True), EVICT, Local()).steps
    made.add_pod("research", "train", "n1", owner="Job")  # a namesake's successor
    for step in steps:
        client.do(step)
    assert any(isinstance(step, Evict) for step in steps)
    assert made.evicted == []


@pytest.mark.parametrize(
    ("kind", "name", "labels", "workload"),
    [
        ("ReplicaSet", "web-5d58d48758", {"pod-template-hash": "5d58d48758"}, "a/Deployment/web"),
        ("ReplicaSet", "web", {}, "a/ReplicaSet/web"),
        ("Job", "nightly-29384756", {}, "a/CronJob/nightly"),
        ("Job", "train-7", {}, "a/Job/train-7"),
        ("", "alone", {}, "a/Pod/alone"),
    ],
)
def test_a_pod_is_named_by_the_controller_that_a_person_knows(
    kind: str, name: str, labels: dict[str, str], workload: str
) -> None:
    made = InMemoryCluster()
    made.add_node("n1")
    made.add_pod("a", name, "n1", owner=kind)
    pod = made._objects["pods", "a", name]
    pod["metadata"]["labels"] = labels
    assert list(KubeClient(made, "n1", EVICT).workloads().values()) == [workload]


def test_the_word_about_a_program_is_an_event_on_its_pod_and_what_nobody_knows_is_on_the_node() -> None:
    made = cluster()
    client = KubeClient(made, "n1", EVICT)
    client.look(closely=False)
    uid = made.read("pods", "train", "research")["metadata"]["uid"]
    client.workloads()
    client.do(Announce("one", False, "WorkloadErrors", "it is the program", uid))
    client.do(Announce("two", False, "WorkloadErrors", "it is the program", "gone"))
    about = made.read("events", "one", "research")["involvedObject"]
    assert (about["kind"], about["name"], about["uid"]) == ("Pod", "train", uid)
    assert made.read("events", "two", "default")["involvedObject"]["kind"] == "Node"
