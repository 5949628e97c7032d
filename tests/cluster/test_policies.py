"""What a token stolen from one node's agent can't do: RBAC allows it, the admission policies refuse it."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from agent.actions.rights import OURS, TOLD_CONTROLLERS
from agent.model.names import REQUESTED_ANNOTATION, TEMPLATE_LABEL
from tests.cluster.conftest import Site
from tests.cluster.control_plane import ControlPlane

MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/gpu-health-agent/leases"
BATCH = "/apis/batch/v1/namespaces/gpu-health-agent"
REFUSED = (403, 422)


class Stolen:
    """The token of the agent on a site's first node, and what the API server answers to it."""

    def __init__(self, site: Site) -> None:
        self.site, self.plane, (self.node, self.other) = site, site.plane, site.nodes
        self.token = site.plane.agent_token(self.node)
        in_force(site.plane, self.token, self.other)

    def __call__(self, method: str, path: str, body: Any = None, content_type: str = "application/json") -> int:
        status, self.said = self.plane.request(method, path, body, content_type, self.token)
        return status

    @property
    def why(self) -> str:
        return str(self.said.get("message"))

    def patch(self, body: Any, node: str = "", status: bool = False) -> int:
        path = f"/api/v1/nodes/{node or self.node}{'/status' if status else ''}"
        return self("PATCH", path, body, STRATEGIC)

    def taint(self, *taints: dict[str, str]) -> int:
        return self("PATCH", f"/api/v1/nodes/{self.node}", {"spec": {"taints": list(taints)}}, MERGE)

    def pod(self, node: str, name: str = "work") -> dict[str, Any]:
        """A pod of the site's namespace, bound to a node."""
        spec = {
            "nodeName": node,
            "terminationGracePeriodSeconds": 30,
            "containers": [{"name": "main", "image": "none"}],
        }
        path = f"/api/v1/namespaces/{self.site.name}/pods"
        return dict(self.plane.must("POST", path, {"metadata": {"name": name}, "spec": spec}))

    def evict(self, pod: dict[str, Any], labels: dict[str, str] = OURS, dry_run: bool = False, **options: Any) -> int:
        metadata = {"name": pod["metadata"]["name"], "namespace": self.site.name, "labels": labels}
        options = {"preconditions": {"uid": pod["metadata"]["uid"]}, **options}
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": metadata, "deleteOptions": options}
        return self("POST", f"{self.path(pod)}/eviction{'?dryRun=All' if dry_run else ''}", body)

    def delete(self, pod: dict[str, Any], **options: Any) -> int:
        return self("DELETE", self.path(pod), {"preconditions": {"uid": pod["metadata"]["uid"]}, **options})

    def path(self, pod: dict[str, Any]) -> str:
        return f"/api/v1/namespaces/{self.site.name}/pods/{pod['metadata']['name']}"


def in_force(plane: ControlPlane, token: str, other: str) -> None:
    """Policies take a moment after they are applied; those of one apply come into force together."""
    body = {"metadata": {"labels": {"gpu-health-agent/state": "unknown"}}}
    path = f"/api/v1/nodes/{other}?dryRun=All"
    plane.wait("policies in force", lambda: plane.request("PATCH", path, body, MERGE, token)[0] == 422)


@pytest.fixture
def stolen(site: Site) -> Stolen:
    return Stolen(site)


def test_another_node_is_refused_and_the_own_one_is_not(stolen: Stolen) -> None:
    body = {"metadata": {"labels": {"gpu-health-agent/state": "unhealthy"}}}
    assert stolen.patch(body, stolen.other) in REFUSED
    assert f"its own Node only, and its token is for {stolen.node}" in stolen.why
    assert stolen.patch(body, stolen.other, status=True) in REFUSED
    assert stolen.patch(body) == 200


def test_a_token_that_is_bound_to_no_node_may_write_nothing(stolen: Stolen) -> None:
    path = "/api/v1/namespaces/gpu-health-agent/serviceaccounts/gpu-health-agent/token"
    stolen.token = stolen.plane.must("POST", path, {"spec": {"expirationSeconds": 3600}})["status"]["token"]
    assert stolen.patch({"metadata": {"labels": {"gpu-health-agent/state": "unhealthy"}}}) in REFUSED
    assert "its token is for none" in stolen.why
    pod = stolen.pod(stolen.node)
    assert stolen.evict(pod) in REFUSED
    assert stolen.delete(pod) in REFUSED


def test_a_foreign_taint_is_refused_to_add_and_to_remove(stolen: Stolen) -> None:
    ours = {"key": "gpu-health-agent/unhealthy", "value": "reset_gpu", "effect": "NoSchedule"}
    foreign = {"key": "example.com/theirs", "effect": "NoSchedule"}
    assert stolen.taint(ours, foreign) in REFUSED
    assert "no taint but its own" in stolen.why
    stolen.plane.must("PATCH", f"/api/v1/nodes/{stolen.node}", {"spec": {"taints": [foreign]}}, MERGE)
    assert stolen.taint(ours) in REFUSED
    assert stolen.taint(foreign, ours) == 200
    assert stolen.taint(foreign) == 200


def test_our_taint_may_not_end_pods_past_their_budgets(stolen: Stolen) -> None:
    assert stolen.taint({"key": "gpu-health-agent/unhealthy", "effect": "NoExecute"}) in REFUSED


def test_a_degraded_nodes_taint_may_be_soft_or_firm_and_end_no_pod(stolen: Stolen) -> None:
    for effect, answers in (("PreferNoSchedule", (200,)), ("NoSchedule", (200,)), ("NoExecute", REFUSED)):
        assert stolen.taint({"key": "gpu-health-agent/degraded", "effect": effect}) in answers


def test_a_label_or_annotation_outside_our_keys_is_refused(stolen: Stolen) -> None:
    for part in ("labels", "annotations"):
        assert stolen.patch({"metadata": {part: {"example.com/theirs": "x"}}}) in REFUSED
        assert stolen.patch({"metadata": {part: {"example.com/theirs": "x"}}}, status=True) in REFUSED
    assert stolen.patch({"metadata": {"labels": {"nvidia.com/gpu.present": None}}}) in REFUSED
    assert "no label of a Node but its own" in stolen.why
    for read_only in ("dismiss", "drill"):
        assert stolen.patch({"metadata": {"annotations": {f"gpu-health-agent/{read_only}": "x"}}}) in REFUSED


def test_nothing_else_of_the_node_is_ours_to_change(stolen: Stolen) -> None:
    assert stolen.patch({"spec": {"unschedulable": True}}) in REFUSED
    assert stolen.patch({"metadata": {"finalizers": ["example.com/keep"]}}) in REFUSED
    assert stolen.patch({"status": {"capacity": {"nvidia.com/gpu": "64"}}}, status=True) in REFUSED
    ready = {"type": "Ready", "status": "False", "reason": "x", "message": "x"}
    assert stolen.patch({"status": {"conditions": [ready]}}, status=True) in REFUSED
    gone = {"type": "Ready", "$patch": "delete"}
    assert stolen.patch({"status": {"conditions": [gone]}}, status=True) in REFUSED


def test_a_pod_of_another_node_is_neither_annotated_nor_deleted_nor_evicted(stolen: Stolen) -> None:
    theirs = stolen.pod(stolen.other)
    body = {"metadata": {"annotations": {REQUESTED_ANNOTATION: "2026-01-01T00:00:00Z"}}}
    assert stolen("PATCH", stolen.path(theirs), body, MERGE) in REFUSED
    assert stolen.delete(theirs) in REFUSED
    # Params come from the API server's own cache of pods, which lags by a moment.
    stolen.plane.wait("cached", lambda: stolen.evict(theirs, dry_run=True) in REFUSED)
    assert stolen.evict(theirs) in REFUSED
    assert f"pods of its own node only, and its token is for {stolen.node}" in stolen.why
    own = stolen.pod(stolen.node, "own")
    assert stolen("PATCH", stolen.path(own), body, MERGE) == 200
    assert stolen.evict(own) == 201


def test_an_eviction_that_does_not_say_whose_it_is_or_which_pod_it_means_is_refused(stolen: Stolen) -> None:
    own = stolen.pod(stolen.node)
    assert stolen.evict(own, labels={}) in REFUSED
    assert stolen.evict(own, preconditions={}) in REFUSED
    assert stolen.evict(own, gracePeriodSeconds=0) in REFUSED


def test_anyone_elses_eviction_is_none_of_our_business(stolen: Stolen) -> None:
    """Not even one that says to be ours."""
    for number, labels in enumerate(({}, OURS)):
        theirs = stolen.pod(stolen.other, f"work-{number}")
        body = {"metadata": {"name": f"work-{number}", "namespace": stolen.site.name, "labels": labels}}
        assert stolen.plane.request("POST", f"{stolen.path(theirs)}/eviction", body)[0] == 201


def test_of_an_own_pod_only_our_annotation_may_change(stolen: Stolen) -> None:
    own = stolen.pod(stolen.node)
    assert stolen("PATCH", stolen.path(own), {"metadata": {"annotations": {"example.com/x": "x"}}}, MERGE) in REFUSED
    assert stolen("PATCH", stolen.path(own), {"metadata": {"labels": {"app": "other"}}}, MERGE) in REFUSED
    image = {"spec": {"containers": [{"name": "main", "image": "evil"}]}}
    assert stolen("PATCH", stolen.path(own), image, STRATEGIC) in REFUSED


def test_a_pod_is_deleted_by_its_uid_and_with_its_own_grace_period_only(stolen: Stolen) -> None:
    own = stolen.pod(stolen.node)
    assert stolen("DELETE", stolen.path(own)) in REFUSED
    assert stolen.delete(own, gracePeriodSeconds=0) in REFUSED
    assert stolen.delete(own, gracePeriodSeconds=5) in REFUSED
    assert stolen.delete(own) == 200


def lease(stolen: Stolen, index: int, node: str) -> dict[str, Any]:
    name = f"gpu-health-agent-withdrawn-{stolen.site.pool}-{index}"
    labels = {"gpu-health-agent/pool": stolen.site.pool, "gpu-health-agent/slot": "withdrawn"}
    return {"metadata": {"name": name, "labels": labels}, "spec": {"holderIdentity": f"{node}/uid" if node else ""}}


def test_a_slot_lease_in_another_nodes_name_is_refused(stolen: Stolen) -> None:
    assert stolen("POST", LEASES, lease(stolen, 0, stolen.other)) in REFUSED
    assert "in the name of its own node only" in stolen.why
    assert stolen("POST", LEASES, lease(stolen, 0, f"{stolen.node}-too")) in REFUSED
    assert stolen("POST", LEASES, lease(stolen, 0, stolen.node)) == 201


def test_a_slot_of_another_may_not_be_freed_but_taken_over(stolen: Stolen) -> None:
    """That its holder is dead can't be seen by a policy: this much stays open to a stolen token."""
    theirs = stolen.plane.must("POST", LEASES, lease(stolen, 1, stolen.other))
    path = f"{LEASES}/{theirs['metadata']['name']}"
    assert stolen("PUT", path, {**theirs, "spec": {"holderIdentity": ""}}) in REFUSED
    assert stolen("PUT", path, {**theirs, "spec": {"holderIdentity": f"{stolen.node}/uid"}}) == 200


def test_of_a_slots_labels_it_changes_only_the_one_that_says_that_it_is_free(stolen: Stolen) -> None:
    made = stolen.plane.must("POST", LEASES, lease(stolen, 3, stolen.node))
    path, labels = f"{LEASES}/{made['metadata']['name']}", made["metadata"]["labels"]

    def put(labels: dict[str, str] | None, holder: str) -> int:
        made = stolen.plane.must("GET", path)
        metadata = {**made["metadata"], "labels": labels}
        return stolen("PUT", path, {**made, "metadata": metadata, "spec": {"holderIdentity": holder}})

    for wrong in ({**labels, "gpu-health-agent/pool": "another"}, {**labels, "more": "x"}, None):
        assert put(wrong, f"{stolen.node}/uid") in REFUSED
    assert put({**labels, "gpu-health-agent/free": "true"}, "") == 200
    assert put({**labels, "gpu-health-agent/free": "true", "more": "x"}, f"{stolen.node}/uid") in REFUSED


def test_no_lease_but_a_permit_is_ours_to_make(stolen: Stolen) -> None:
    made = lease(stolen, 2, stolen.node)
    made["metadata"]["name"] = "gpu-operator-leader"
    assert stolen("POST", LEASES, made) in REFUSED


def event(stolen: Stolen, kind: str, name: str, version: str = "v1", uid: str = "u", **changed: Any) -> int:
    namespace = "default" if kind == "Node" else stolen.site.name
    about = {"kind": kind, "name": name, "namespace": "" if kind == "Node" else namespace, "apiVersion": version}
    about["uid"] = uid
    body = {
        "metadata": {"generateName": "e-", "namespace": namespace},
        "reason": "Xid79",
        "type": "Warning",
        "message": "x",
        "involvedObject": about,
        **changed,
        "source": {"component": "gpu-health-agent", "host": stolen.node, **changed.get("source", {})},
    }
    return stolen("POST", f"/api/v1/namespaces/{namespace}/events", body)


def test_events_speak_of_the_own_node_of_pods_and_of_their_controllers_in_our_own_name(stolen: Stolen) -> None:
    assert event(stolen, "Node", stolen.node) == 201
    assert event(stolen, "Node", stolen.other) in REFUSED
    assert event(stolen, "Pod", "work") == 201
    for kind, version in TOLD_CONTROLLERS.items():
        assert event(stolen, kind, "work", version) == 201
        assert event(stolen, kind, "work", version, uid="") in REFUSED
        assert event(stolen, kind, "work", version, source={"component": "kubelet"}) in REFUSED
        assert event(stolen, kind, "work", version, source={"host": stolen.other}) in REFUSED
    for kind, version in {
        "DaemonSet": "apps/v1",
        "CronJob": "batch/v1",
        "Service": "v1",
        "Job": "example.com/v1",
    }.items():
        assert event(stolen, kind, "work", version) in REFUSED
    assert "and of what controls them only" in stolen.why
    assert event(stolen, "Node", stolen.node, source={"component": "kubelet"}) in REFUSED
    assert event(stolen, "Node", stolen.node, source={"host": stolen.other}) in REFUSED


def job(stolen: Stolen, template: str = "gpu-reset") -> dict[str, Any]:
    """What the agent would make of a template."""
    found = stolen.plane.must("GET", f"{BATCH}/cronjobs/{template}")
    spec = copy.deepcopy(found["spec"]["jobTemplate"]["spec"])
    spec |= {"backoffLimit": 0, "parallelism": 1, "completions": 1}
    spec["template"]["metadata"].setdefault("annotations", {})["gpu-health-agent/gpus"] = "GPU-0a1b,GPU-2c3d"
    spec["template"]["spec"]["nodeName"] = stolen.node
    return {"metadata": {"generateName": "j-", "labels": {TEMPLATE_LABEL: template}}, "spec": spec}


def test_a_job_of_a_template_on_the_own_node_is_allowed(stolen: Stolen) -> None:
    assert stolen("POST", f"{BATCH}/jobs", job(stolen)) == 201
    assert stolen("POST", f"{BATCH}/jobs", job(stolen, "node-reboot")) == 201
    assert stolen("POST", f"{BATCH}/jobs", job(stolen, "gpu-collect")) == 201


def test_a_job_with_another_image_is_refused(stolen: Stolen) -> None:
    made = job(stolen)
    made["spec"]["template"]["spec"]["containers"][0]["image"] = "evil"
    assert stolen("POST", f"{BATCH}/jobs", made) in REFUSED
    assert "must be its template's but for the node's name" in stolen.why


@pytest.mark.parametrize(
    "more",
    [
        {"serviceAccountName": "default"},
        {"hostNetwork": True},
        {"hostPID": True},
        {"volumes": [{"name": "host", "hostPath": {"path": "/"}}]},
        {"restartPolicy": "OnFailure"},
        {"initContainers": [{"name": "first", "image": "evil"}]},
        {"runtimeClassName": None},
    ],
)
def test_a_job_that_asks_for_more_or_less_than_its_template_is_refused(stolen: Stolen, more: dict[str, Any]) -> None:
    made = job(stolen)
    made["spec"]["template"]["spec"] |= more
    assert stolen("POST", f"{BATCH}/jobs", made) in REFUSED


def test_a_job_whose_pod_looks_like_anothers_is_refused(stolen: Stolen) -> None:
    for part in ("labels", "annotations"):
        made = job(stolen)
        made["spec"]["template"]["metadata"][part]["app"] = "ingress"
        assert stolen("POST", f"{BATCH}/jobs", made) in REFUSED
        assert "labels and annotations of the pod" in stolen.why


def test_a_job_on_another_node_is_refused(stolen: Stolen) -> None:
    made = job(stolen)
    made["spec"]["template"]["spec"]["nodeName"] = stolen.other
    assert stolen("POST", f"{BATCH}/jobs", made) in REFUSED
    assert "on its own node only" in stolen.why


def test_a_job_of_no_template_or_of_one_without_a_binding_is_refused(stolen: Stolen) -> None:
    found = stolen.plane.must("GET", f"{BATCH}/cronjobs/gpu-reset")
    mine = {"metadata": {"name": stolen.site.name}, "spec": found["spec"]}
    stolen.plane.must("POST", f"{BATCH}/cronjobs", mine)
    for labels in ({}, {TEMPLATE_LABEL: stolen.site.name}):
        made = job(stolen)
        made["metadata"]["labels"] = labels
        assert stolen("POST", f"{BATCH}/jobs", made) in REFUSED
        assert "of these templates only: gpu-reset, node-reboot, gpu-collect" in stolen.why


@pytest.mark.parametrize("gpus", ["GPU-1;reboot", "$(reboot)", "0", "GPU-1,"])
def test_what_names_the_gpus_can_be_nothing_but_uuids(stolen: Stolen, gpus: str) -> None:
    made = job(stolen)
    made["spec"]["template"]["metadata"]["annotations"]["gpu-health-agent/gpus"] = gpus
    assert stolen("POST", f"{BATCH}/jobs", made) in REFUSED


def test_a_job_runs_one_pod_once_and_not_for_ever(stolen: Stolen) -> None:
    for changed in ({"parallelism": 2}, {"completions": 5}, {"backoffLimit": 6}, {"activeDeadlineSeconds": None}):
        made = job(stolen)
        made["spec"] |= changed
        assert stolen("POST", f"{BATCH}/jobs", made) in REFUSED


def test_the_operators_labels_and_the_request_for_replacement_change_with_the_overlay_that_repairs(
    stolen: Stolen,
) -> None:
    assert stolen.patch({"metadata": {"labels": {"nvidia.com/gpu.deploy.dcgm": "false"}}}) == 200
    wanted = {"type": "GpuReplacementRequested", "status": "True", "reason": "x", "message": "x"}
    assert stolen.patch({"status": {"conditions": [wanted]}}, status=True) == 200
