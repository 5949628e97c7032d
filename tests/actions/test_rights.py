"""The table of rights is the whole truth: what the agent sends, what it may write, and what RBAC grants."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.actions import rights
from agent.actions.kube import KubeClient
from agent.actions.rights import RIGHTS, Right, needed
from agent.model import names
from agent.model.errors import RefusedError
from agent.model.neighbours import ASKED, CORDON_REASON, NEIGHBOURS, NOT_ASKED, Preset
from agent.model.ownership import GATE_TAINTS, OPERANDS
from agent.simulation.in_memory_cluster import InMemoryCluster
from tests.actions.test_kube import EVICT, MERGE, cluster, drive
from tests.actions.test_permits import Clock
from tests.actions.test_pods import annotate, change, config, reset
from tests.chart import opened
from tests.life import Life
from tests.remediation.test_fence import Fenced

NAMESPACE = "gpu-health-agent"
OF_A_REPLICA_SET = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "train-5d5", "uid": "u", "controller": True}
DAEMONSET = Path(__file__).parents[2] / "daemonset"


class Watched:
    """A cluster in memory with storage and budgets, and the rights that were used on it."""

    def __init__(self, made: InMemoryCluster, protected: bool = False) -> None:
        self.made, self.protected = made, protected
        self.used: set[tuple[Right, str]] = set()

    def __call__(self, method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        found = needed(method, path, NAMESPACE)
        assert found, (method, path)
        self.used.add(found)
        if path.endswith("/eviction") and self.protected:
            return 500, {"message": "This pod has more than one PodDisruptionBudget."}
        if path.endswith("/poddisruptionbudgets"):
            return 200, {"items": []}
        if path.endswith("/persistentvolumeclaims/data"):
            return 200, {"spec": {"volumeName": "pv-1"}}
        if path.endswith("/persistentvolumes/pv-1"):
            return 200, {"spec": {"nfs": {}}}
        return self.made(method, path, *rest, **more)


def drained(**drain: str) -> set[tuple[Right, str]]:
    """A Deployment's pod with a claim and a checkpoint that its budgets protect, until the deadline."""
    made, clock, settings = Watched(cluster(), protected=True), Clock(), config(on_deadline="delete", **drain)
    change(made.made, "train", {"spec": {"volumes": [{"persistentVolumeClaim": {"claimName": "data"}}]}})
    change(made.made, "train", {"metadata": {"ownerReferences": [OF_A_REPLICA_SET]}})
    annotate(made.made, "train", checkpoint="annotation", checkpoint_timeout_s="120")
    client = KubeClient(made, "n1", settings, clock)
    drive(client, reset(), settings, rounds=5)
    clock.now += 3601
    drive(client, reset(3601), settings, rounds=5)
    assert "train" not in made.made.pods_on("n1")
    return made.used


def repaired(kind: type[Life]) -> set[tuple[Right, str]]:
    life = kind(95)
    watched = life.api = Watched(life.cluster)
    life.run(200)
    assert life.repairs
    return watched.used


def offered() -> set[tuple[Right, str]]:
    """By DRA, which is asked for where the kubelet offers no GPU."""
    made = Watched(cluster())
    made.made("PATCH", "/api/v1/nodes/n1", {"status": {"allocatable": None}}, MERGE)
    KubeClient(made, "n1", EVICT).look(closely=False)
    return made.used


def watched() -> set[tuple[Right, str]]:
    made = Watched(cluster())
    assert next(KubeClient(made, "n1", EVICT).words())
    return made.used


def test_every_declared_right_is_used_and_nothing_else_is_asked_for() -> None:
    declared = {(right, verb) for right in RIGHTS for verb in right.verbs}
    treated = drained() | drained(eviction="ask_then_delete") | repaired(Life) | repaired(Fenced)
    assert treated | watched() | offered() == declared


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/secrets",
        "/api/v1/namespaces/other/configmaps/gpu-health-agent-pause",
        "/api/v1/namespaces/gpu-health-agent/configmaps/another",
        "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases",
    ],
)
def test_what_is_not_declared_is_not_even_sent(path: str) -> None:
    made = cluster()
    client = KubeClient(made, "n1", EVICT)
    made.requests.clear()
    with pytest.raises(RefusedError, match="no right that the agent declares"):
        client._api("GET", path)
    assert made.requests == []


def granted(folder: str) -> Iterator[tuple[bool, str, str, str, str]]:
    """Each (own namespace only, group, resource, name, verb) that a folder's RBAC grants."""
    for document in yaml.safe_load_all((DAEMONSET / folder / "rbac.yaml").read_text()):
        if document["kind"] in ("Role", "ClusterRole"):
            assert document["metadata"].get("namespace", NAMESPACE) == NAMESPACE
            for rule in document["rules"]:
                assert rule.keys() <= {"apiGroups", "resources", "verbs", "resourceNames"}
                for group in rule["apiGroups"]:
                    for resource in rule["resources"]:
                        for name in rule.get("resourceNames", [""]):
                            for verb in rule["verbs"]:
                                yield document["kind"] == "Role", group, resource, name, verb


@pytest.mark.parametrize(
    ("overlay", "folder"), [("", "base"), *((part, f"components/{part}") for part in ("repair", "hardened", "dra"))]
)
def test_rbac_grants_exactly_what_is_declared(overlay: str, folder: str) -> None:
    declared = [(r.own, r.group, r.resource, r.name, verb) for r in RIGHTS if r.overlay == overlay for verb in r.verbs]
    assert sorted(granted(folder)) == sorted(declared)


def test_what_may_be_written_to_a_node_is_what_the_plan_writes() -> None:
    assert {*rights.NODE_LABELS} == {names.STATE_LABEL, names.ERROR_LABEL, names.OUT_LABEL, names.WITHDRAWN_LABEL}
    assert {*rights.NODE_CONDITIONS, *rights.REPAIR_CONDITIONS} == {names.UNHEALTHY, names.DEGRADED, names.REPLACEMENT}
    assert {*rights.REPAIR_LABELS} == {*OPERANDS}


def variable(folder: str, policy: str, name: str) -> Any:
    """A literal of CEL, which is one of Python too."""
    for document in yaml.safe_load_all((DAEMONSET / folder / "policies.yaml").read_text()):
        if (document["kind"], document["metadata"]["name"]) == ("ValidatingAdmissionPolicy", policy):
            return ast.literal_eval(next(v["expression"] for v in document["spec"]["variables"] if v["name"] == name))
    raise KeyError(policy)


def test_the_policies_let_through_exactly_the_keys_that_are_declared() -> None:
    nodes = "gpu-health-agent-nodes"
    assert variable("base", nodes, "labels") == [*rights.NODE_LABELS]
    assert variable("base", nodes, "annotations") == [*rights.NODE_ANNOTATIONS]
    assert variable("base", nodes, "conditions") == [*rights.NODE_CONDITIONS]
    assert variable("base", nodes, "taints") == rights.NODE_TAINTS
    assert variable("base", "gpu-health-agent-pods", "annotations") == [*rights.POD_ANNOTATIONS]
    assert variable("base", "gpu-health-agent-events", "controllers") == rights.TOLD_CONTROLLERS
    assert variable("components/hardened", "gpu-health-agent-pod-status", "conditions") == [*rights.POD_CONDITIONS]


def test_the_repair_overlay_adds_the_keys_that_a_repair_changes() -> None:
    assert literals("repair") == {
        "labels": [*rights.NODE_LABELS, *rights.REPAIR_LABELS],
        "replacement": [*rights.REPAIR_CONDITIONS],
    }


def literals(component: str) -> dict[str, Any]:
    """What a component opens in the Nodes' policy."""
    return {name: ast.literal_eval(expression) for name, expression in opened(component).items()}


@pytest.mark.parametrize("preset", Preset)
def test_a_presets_component_opens_what_its_row_says_with_our_mark_and_nothing_else(preset: Preset) -> None:
    row, found = NEIGHBOURS[preset], literals(preset)
    assert found.pop("replacement", []) == ([*rights.REPAIR_CONDITIONS] if row.replaces else [])
    taints = {row.taint.key: [row.taint.value]} if row.taint else {}
    conditions = {row.condition: [ASKED, NOT_ASKED]} if row.condition else {}
    label = row.label
    labels = {label.key: [label.before, label.value]} if label else {}
    cordons = [CORDON_REASON] if row.cordons else []
    assert [*found.values()] == [one for one in (taints, conditions, labels, cordons) if one]
    assert row.taint is None or row.taint.effect == "NoSchedule", "the policy knows no other"


def test_the_gates_component_opens_its_startup_taints_and_nothing_else() -> None:
    assert literals("gate") == {"gateTaints": [*GATE_TAINTS]}


def test_in_the_base_nothing_that_a_component_opens_is_open() -> None:
    """And no two open the same for different things: then their order would matter."""
    variables: dict[str, set[str]] = {}
    for component in ("repair", "gate", *Preset):
        for name, expression in opened(component).items():
            variables.setdefault(name, set()).add(expression)
    assert [name for name, expressions in variables.items() if len(expressions) > 1] == []
    assert all(variable("base", "gpu-health-agent-nodes", name) in ([], {}) for name in {*variables} - {"labels"})


def test_every_policy_denies_fails_closed_and_is_bound() -> None:
    for folder in ("base", "components/repair", "components/hardened", "components/dra"):
        documents = list(yaml.safe_load_all((DAEMONSET / folder / "policies.yaml").read_text()))
        policies = {d["metadata"]["name"]: d["spec"] for d in documents if d["kind"] == "ValidatingAdmissionPolicy"}
        bound = [d["spec"] for d in documents if d["kind"] == "ValidatingAdmissionPolicyBinding"]
        assert {spec["policyName"] for spec in bound} == {*policies}
        assert all(spec["validationActions"] == ["Deny"] for spec in bound)
        assert all(spec["failurePolicy"] == "Fail" for spec in policies.values())
