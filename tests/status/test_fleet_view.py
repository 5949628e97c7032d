"""``gpu-health-agent nodes``: which nodes are sick, why, what is waited for, and that hostile text stays text."""

from __future__ import annotations

import contextlib
import time
from argparse import Namespace
from typing import Any

import pytest

from agent.actions.fleet import deployed, read_fleet, read_fleet_without_nodes
from agent.actions.kube import KubeClient
from agent.cli import main
from agent.commands import explain, nodes
from agent.commands.explain import of_node
from agent.config.settings import Budget, Config, Mode
from agent.model.errors import RefusedError, UsageError
from agent.model.names import DISMISS_ANNOTATION, FAULTS_ANNOTATION, OUT_LABEL, STATE_LABEL, WITHDRAWN_LABEL
from agent.model.text import rfc3339
from agent.model.world import BY_HAND, Claim, Local
from agent.remediation.plan import plan
from agent.remediation.records import Kind, Records, Stage, Validation
from agent.remediation.stored import dump
from agent.simulation.in_memory_cluster import InMemoryCluster
from agent.status.fleet_view import as_html, as_text, fleet_state
from tests.actions.test_kube import EVICT, MERGE, cluster, drive, fatal, healthy
from tests.observe import GPU

ONE = Config(mode=Mode.EVICT, budget=Budget(max_withdrawn=1))
NOW = time.time()


def with_agents(made: InMemoryCluster) -> InMemoryCluster:
    for name in ("n1", "n2", "n3"):
        made.add_pod("gpu-health-agent", f"agent-{name}", name, gpus=0, owner="DaemonSet")
        path = f"/api/v1/namespaces/gpu-health-agent/pods/agent-{name}"
        labels = {"app.kubernetes.io/name": "gpu-health-agent", "app.kubernetes.io/version": "1.2.3"}
        made(
            "PATCH", path, {"metadata": {"labels": labels, "creationTimestamp": rfc3339(NOW - 7200, "seconds")}}, MERGE
        )
    return made


def state(made: InMemoryCluster, config: Config = ONE, selector: str = "") -> dict[str, Any]:
    return fleet_state(read_fleet(made, config.budget, selector), config, NOW)


def test_it_names_the_sick_first_with_what_is_waited_for_and_who_holds_the_permits() -> None:
    made = with_agents(cluster("n1", "n2", "n3"))
    for name in ("n1", "n2"):
        drive(KubeClient(made, name, ONE), fatal(), ONE)
    drive(KubeClient(made, "n3", ONE), healthy(), ONE)
    told = state(made)
    rows = {one["node"]: one for one in told["nodes"]}
    assert [one["node"] for one in told["nodes"]] == ["n2", "n1", "n3"]
    assert rows["n2"]["waits"] == [
        "a permit: the budget is spent: 1 of 1 taken, by n1 (withdrawn permits, pool of 3 nodes)"
    ]
    assert (rows["n1"]["withdrawn"], rows["n1"]["faults"][0]["id"]) == (True, f"xid-79@{GPU}")
    assert (rows["n3"]["state"], rows["n3"]["waits"], rows["n3"]["faults"]) == ("healthy", [], [])
    assert told["permits"]["withdrawn"] == {"allowed": 1, "taken": 1, "by": ["n1"]}
    lines = as_text(told, NOW).splitlines()
    assert lines[0].split() == ["NODE", "STATE", "SINCE", "GPU", "FAULT", "WHY", "WAITS", "FOR", "AGENT"]
    assert lines[1].startswith("n2")
    assert lines[3].split() == ["n3", "healthy", "1.2.3,", "2h"]
    assert "Permits, withdrawn: 1 of 1 taken: n1." in lines


def test_a_table_without_nodes_says_why() -> None:
    made = cluster("n1")
    assert "None of the pool's 1 nodes has the labels that were asked for." in as_text(state(made, ONE, "a=b"), NOW)
    other = Config(budget=Budget(pool_selector="a=b"))
    assert "The pool is empty: no node has the labels of budget.pool_selector." in as_text(state(made, other), NOW)
    assert "labels" not in as_text(state(made), NOW)


@pytest.mark.parametrize("command", [("nodes",), ("nodes", "n1"), ("explain", "--node", "n1")])
def test_where_the_agents_settings_cant_be_read_table_and_node_go_by_the_same_and_say_so(
    command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = with_agents(cluster("n1"))
    drive(KubeClient(made, "n1", Config()), fatal(), Config())
    for module in (explain, nodes):
        monkeypatch.setattr(module, "persons", lambda _: None)
        monkeypatch.setattr(module, "connect", lambda *_, **__: made)
    assert main(command) == 0
    told = capsys.readouterr()
    assert "mode observe" in told.out
    assert "permit and its pods are evicted" not in told.out
    assert "so defaults are shown" in told.err


def test_a_selector_that_the_api_server_refuses_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def api(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        return (400, {"message": "unable to parse"}) if "labelSelector=" in path else (404, {})

    monkeypatch.setattr(nodes, "persons", lambda _: None)
    monkeypatch.setattr(nodes, "connect", lambda *_, **__: api)
    with pytest.raises(UsageError, match="--selector: unable to parse"):
        nodes.run(Namespace(kubeconfig=None, config=None, node=None, selector="a b"))


def test_a_node_without_an_agent_is_told() -> None:
    made = with_agents(cluster("n1", "n2"))
    del made._objects["pods", "gpu-health-agent", "agent-n2"]
    rows = {one["node"]: one for one in state(made)["nodes"]}
    assert (rows["n1"]["waits"], rows["n2"]["waits"]) == ([], ["an agent: no pod of it runs there"])
    assert rows["n2"]["agent"] is None


def test_an_agent_that_was_started_by_hand_is_not_missed() -> None:
    made = with_agents(cluster("n1"))
    del made._objects["pods", "gpu-health-agent", "agent-n1"]
    local = Local(claim=Claim(1, f"{BY_HAND}1234"))
    client = KubeClient(made, "n1", ONE)
    for step in plan(fatal(), client.look(closely=True), ONE, local).steps:
        client.do(step)
    (row,) = state(made)["nodes"]
    assert row["agent"]["by_hand"]
    assert not [why for why in row["waits"] if "no pod" in why]
    assert "by hand, wrote " in as_text(state(made), NOW, wide=True)


def test_one_node_alone_waits_for_what_the_fleets_table_says_and_for_whose_permits() -> None:
    made = with_agents(cluster("n1", "n2", "n3"))
    for name in ("n1", "n2"):
        drive(KubeClient(made, name, ONE), fatal(), ONE)
    for row in state(made)["nodes"]:
        if row["node"] != "n3":  # which no agent wrote to
            assert of_node(made, row["node"], ONE)["waits"] == row["waits"]
    assert of_node(made, "n2", ONE)["waits"] == [
        "a permit: the budget is spent: 1 of 1 taken, by n1 (withdrawn permits, pool of 3 nodes)"
    ]


def test_a_draining_node_without_the_permit_to_evict_waits_for_it_and_not_for_its_pods() -> None:
    one_drains = Config(mode=Mode.EVICT, budget=Budget(max_withdrawn=2, max_draining=1))
    made = with_agents(cluster("n1", "n2", "n3"))

    def api(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        if path.endswith("/eviction"):
            return 429, {"message": "its budget allows none"}
        return made(method, path, *rest, **more)

    for name in ("n1", "n2"):
        made.add_pod("a", f"pod-{name}", name, gpus=1, owner="Job")
        with contextlib.suppress(RefusedError):
            drive(KubeClient(api, name, one_drains), fatal(), one_drains, rounds=3)
    rows = {one["node"]: one for one in state(made, one_drains)["nodes"]}
    assert (rows["n1"]["state"], rows["n2"]["state"]) == ("draining", "draining")
    waits = {rows[name]["waits"][0] for name in ("n1", "n2")}
    assert waits == {
        "its pods to leave (see Events)",
        "a permit: the budget is spent: 1 of 1 taken, by n1 (draining permits, pool of 3 nodes)",
    }


def test_who_may_not_read_the_permits_is_told_so_and_sees_the_faults() -> None:
    made = with_agents(cluster("n1"))
    drive(KubeClient(made, "n1", Config()), fatal(), Config())

    def api(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        if "/leases" in path:
            return 403, {"message": "leases is forbidden"}
        return made(method, path, *rest, **more)

    told = of_node(api, "n1", ONE)
    permit, hold = told["waits"]
    assert permit == "perhaps a permit, which can't be seen: leases is forbidden"
    assert "once it is cured it stays out of service for 8 h more, while another withdrawn permit" in hold
    assert [one["id"] for one in told["faults"]] == [f"xid-79@{GPU}"]


def test_of_a_hold_that_a_person_wants_none_of_nobody_is_told() -> None:
    made, config = with_agents(cluster("n1", "n2")), Config(mode=Mode.EVICT, budget=Budget(max_withdrawn=2))
    drive(KubeClient(made, "n1", config), fatal(), config)

    def told() -> list[bool]:
        everywhere = (of_node(made, "n1", config), *state(made, config)["nodes"][:1])
        return [any("stays out of service for 8 h more" in why for why in one["waits"]) for one in everywhere]

    assert told() == [True, True]
    made("PATCH", "/api/v1/nodes/n1", {"metadata": {"annotations": {DISMISS_ANNOTATION: "recurrence@node"}}}, MERGE)
    assert told() == [False, False]


@pytest.mark.parametrize(
    ("labels", "waits"),
    [
        ({"gpu-health-agent/managed": "off"}, "a person: the node is opted out"),
        (
            {"nvidia.com/gpu-driver-upgrade-state": "drain-required"},
            "the GPU driver is being upgraded (nvidia.com/gpu-driver-upgrade-state=drain-required)",
        ),
    ],
)
def test_who_keeps_the_agent_off_is_told(labels: dict[str, str], waits: str) -> None:
    made = with_agents(cluster("n1"))
    drive(KubeClient(made, "n1", EVICT), fatal())
    made("PATCH", "/api/v1/nodes/n1", {"metadata": {"labels": labels}}, MERGE)
    (row,) = state(made)["nodes"]
    assert row["waits"] == [waits]


def test_in_another_mode_it_says_that_nothing_is_done() -> None:
    made = with_agents(cluster("n1"))
    drive(KubeClient(made, "n1", Config()), fatal(), Config())
    (row,) = state(made, Config())["nodes"]
    assert row["waits"] == ["a person: mode observe only reports"]


def test_the_same_fault_on_many_nodes_at_once_is_told_as_what_a_roll_out_looks_like() -> None:
    names = tuple(f"n{n}" for n in range(1, 5))
    made = cluster(*names)
    for name in names[:2]:
        drive(KubeClient(made, name, ONE), fatal(), ONE)
    assert state(made)["alike"] == []
    drive(KubeClient(made, names[2], ONE), fatal(), ONE)
    told = state(made)
    assert [(one["rule"], one["nodes"]) for one in told["alike"]] == [("xid-79", ["n1", "n2", "n3"])]
    assert "xid-79 on 3 nodes within ten minutes" in as_text(told, NOW)


def test_a_selector_chooses_nodes_and_leaves_the_budget_as_it_is() -> None:
    made = cluster("n1", "n2")
    drive(KubeClient(made, "n1", ONE), fatal(), ONE)
    made("PATCH", "/api/v1/nodes/n2", {"metadata": {"labels": {"team": "a"}}}, MERGE)
    told = state(made, selector="team=a")
    assert ([one["node"] for one in told["nodes"]], told["pool"]["nodes"]) == (["n2"], 2)
    assert told["permits"]["withdrawn"]["by"] == ["n1"]


def test_the_nodes_are_asked_for_once_and_the_pool_is_what_an_agent_reads() -> None:
    made = cluster(*(f"n{n}" for n in range(6)))
    drive(KubeClient(made, "n1", ONE), fatal(), ONE)
    made("PATCH", "/api/v1/nodes/n2", {"metadata": {"labels": {OUT_LABEL: "true"}}}, MERGE)
    made("PATCH", "/api/v1/nodes/n3", {"metadata": {"labels": {WITHDRAWN_LABEL: "true"}}}, MERGE)
    made("PATCH", "/api/v1/nodes/n4/status", {"status": {"conditions": [{"type": "Ready", "status": "False"}]}}, MERGE)
    made.requests.clear()
    told = read_fleet(made, ONE.budget)
    assert sum(path.startswith("/api/v1/nodes") for _, path in made.requests) == 1
    assert told.pool == read_fleet_without_nodes(made, ONE.budget).pool
    assert (told.pool.size, sorted(told.pool.out)) == (6, ["n2", "n3", "n4"])


def test_of_a_large_pools_holders_a_sentence_names_five_and_the_data_all() -> None:
    eight = Config(mode=Mode.EVICT, budget=Budget(max_withdrawn=8))
    made = cluster(*(f"n{n}" for n in range(9)))
    for n in range(9):
        drive(KubeClient(made, f"n{n}", eight), fatal(), eight)
    told = state(made, eight)
    five = "n0, n1, n2, n3, n4 and 3 more"
    assert f"Permits, withdrawn: 8 of 8 taken: {five}." in as_text(told, NOW)
    assert told["permits"]["withdrawn"]["by"] == [f"n{n}" for n in range(8)]
    (waits,) = (one["waits"] for one in told["nodes"] if one["node"] == "n8")
    assert waits[-1].endswith(f"8 of 8 taken, by {five} (withdrawn permits, pool of 9 nodes)")


def test_hostile_text_stays_text() -> None:
    made = cluster("n1")
    drive(KubeClient(made, "n1", ONE), fatal(), ONE)
    path, key = "/api/v1/nodes/n1", "gpu-health-agent/faults"
    text = made.read("nodes", "n1")["metadata"]["annotations"][key]
    bad = text.replace('message":"', 'message":"<script>\\u001b[2J')
    assert bad != text
    made("PATCH", path, {"metadata": {"annotations": {key: bad}}}, MERGE)
    told = state(made)
    assert "\x1b" not in as_text(told, NOW)
    assert "<script>" not in as_html(told, NOW)
    made("PATCH", path, {"metadata": {"annotations": {key: "{}"}}}, MERGE)
    (row,) = state(made)["nodes"]
    assert row["waits"][0].startswith("a person: annotation gpu-health-agent/faults:")


def test_what_the_agents_run_with_is_read_from_the_cluster_where_it_may_be() -> None:
    def api(method: str, path: str, *_: Any, **__: Any) -> tuple[int, Any]:
        if path.endswith("/daemonsets/gpu-health-agent"):
            volumes = [{"name": "socket"}, {"name": "config", "configMap": {"name": "gpu-health-agent-abc"}}]
            return 200, {"spec": {"template": {"spec": {"volumes": volumes}}}}
        assert path.endswith("/configmaps/gpu-health-agent-abc")
        return 200, {"data": {"config.yaml": "mode: taint\nbudget: {max_withdrawn: 3}"}}

    assert deployed(api, "gpu-health-agent") == Config(mode=Mode.TAINT, budget=Budget(max_withdrawn=3))
    assert deployed(lambda *_, **__: (403, {"message": "no"}), "gpu-health-agent") is None
    assert deployed(lambda *_, **__: (200, {"spec": {}}), "gpu-health-agent") is None


@pytest.mark.parametrize(
    ("stage", "waits"),
    [
        (Stage.FAILED, "a person: the check before the startup taint's removal failed (DCGM says no)"),
        (Stage.STARTED, "the proof that it is well"),
    ],
)
def test_a_node_whose_check_failed_waits_for_a_person(stage: Stage, waits: str) -> None:
    made = with_agents(cluster())
    check = Validation(Kind.GATE, f"{Kind.GATE}1", stage=stage, said="DCGM says no" if stage is Stage.FAILED else "")
    records, shown = Records(validation=check), "unhealthy" if stage is Stage.FAILED else "validating"
    annotations = {FAULTS_ANNOTATION: dump(healthy(), None, NOW, records, None)}
    body = {"metadata": {"annotations": annotations, "labels": {STATE_LABEL: shown}}}
    made("PATCH", "/api/v1/nodes/n1", body, MERGE)
    (node,) = [one for one in state(made)["nodes"] if one["node"] == "n1"]
    assert waits in node["waits"]
