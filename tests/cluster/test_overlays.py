"""Every overlay is applied to a real API server, one after the other, and its pods are scheduled where they belong."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.build import assets
from tests.cluster.conftest import OVERLAYS
from tests.cluster.control_plane import ControlPlane

MERGE = "application/merge-patch+json"
DAEMONSET = "/apis/apps/v1/namespaces/gpu-health-agent/daemonsets/gpu-health-agent"
BASE_FIRST = sorted((path.name for path in OVERLAYS.iterdir()), key=lambda name: (name != "evict", name))


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A node with GPUs, one whose GPU label went with its GPU but that bears our state label, and one without GPUs."""
    made = ControlPlane(tmp_path_factory.mktemp("overlays"), assets())
    made.up(nodes=0)
    for name in ("gpu", "dead-gpu", "cpu"):
        made.add_node(name)
    for name in ("dead-gpu", "cpu"):
        state = {"gpu-health-agent/state": "unhealthy"} if name == "dead-gpu" else {}
        body = {"metadata": {"labels": {"nvidia.com/gpu.present": None, **state}}}
        made.must("PATCH", f"/api/v1/nodes/{name}", body, MERGE)
    tainted = {"spec": {"taints": [{"key": "gpu-health-agent/unhealthy", "effect": "NoSchedule"},
                                   {"key": "nvidia.com/gpu", "effect": "NoSchedule"}]}}  # fmt: skip
    made.must("PATCH", "/api/v1/nodes/dead-gpu", tainted, MERGE)
    yield made
    made.down()


@pytest.mark.parametrize("overlay", BASE_FIRST)
def test_it_is_applied_and_its_pods_run_on_the_nodes_with_gpus_or_with_our_label(
    plane: ControlPlane, overlay: str
) -> None:
    plane.install(OVERLAYS / overlay)
    generation = plane.must("GET", DAEMONSET)["metadata"]["generation"]

    def rolled_out() -> bool:
        status = plane.must("GET", DAEMONSET).get("status", {})
        seen = status.get("observedGeneration") == generation
        return bool(seen and status.get("updatedNumberScheduled") == status.get("numberReady") == 2)

    plane.wait("rolled out", rolled_out)
    pods = plane.must("GET", "/api/v1/namespaces/gpu-health-agent/pods")["items"]
    running = [p for p in pods if not p["metadata"].get("deletionTimestamp")]
    assert {p["spec"]["nodeName"] for p in running} == {"gpu", "dead-gpu"}
    config = next(v["configMap"]["name"] for v in running[0]["spec"]["volumes"] if v["name"] == "config")
    applied = plane.must("GET", f"/api/v1/namespaces/gpu-health-agent/configmaps/{config}")["data"]["config.yaml"]
    own = OVERLAYS / overlay / "config.yaml"
    assert applied == (own if own.exists() else OVERLAYS.parent / "base" / "config.yaml").read_text()


@pytest.mark.parametrize("overlay", BASE_FIRST)
def test_no_expression_of_its_policies_has_a_wrong_type(plane: ControlPlane, overlay: str) -> None:
    plane.install(OVERLAYS / overlay)
    path = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"

    def checked() -> bool:
        return all(
            (p.get("status") or {}).get("observedGeneration") == p["metadata"]["generation"]
            for p in plane.must("GET", path)["items"]
        )

    plane.wait("type-checked", checked)
    warnings = {p["metadata"]["name"]: p["status"].get("typeChecking", {}).get("expressionWarnings")
                for p in plane.must("GET", path)["items"]}  # fmt: skip
    assert warnings
    assert not any(warnings.values()), warnings


def test_the_components_go_together(plane: ControlPlane, tmp_path: Path) -> None:
    """As the README has it: an operator's own overlay, of any of them."""
    shutil.copytree(OVERLAYS.parent, tmp_path / "daemonset")
    own = tmp_path / "own"
    own.mkdir()
    names = sorted(path.name for path in (tmp_path / "daemonset/components").iterdir())
    parts = "".join(f"  - {os.path.relpath(tmp_path / 'daemonset/components' / name, own)}\n" for name in names)
    (own / "kustomization.yaml").write_text(f"resources: [../daemonset/base]\ncomponents:\n{parts}")
    plane.install(own)
    for role in ("clusterroles/gpu-health-agent-hardened", "namespaces/gpu-health-agent/roles/gpu-health-agent-repair"):
        assert plane.request("GET", f"/apis/rbac.authorization.k8s.io/v1/{role}")[0] == 200


def test_the_base_is_what_apply_on_the_folder_gives(plane: ControlPlane) -> None:
    rendered = [plane.kubectl("kustomize", str(path)) for path in (OVERLAYS.parent, OVERLAYS / "evict")]
    assert rendered[0] == rendered[1]


def test_without_the_repair_overlay_no_operand_label_and_no_replacement_is_ours(plane: ControlPlane) -> None:
    plane.install(OVERLAYS / "evict")
    token = plane.agent_token("gpu")
    path = "/api/v1/nodes/gpu?dryRun=All"
    for key, allowed in (("gpu-health-agent/state", 200), ("nvidia.com/gpu.deploy.dcgm", 422)):
        body = {"metadata": {"labels": {key: "x"}}}
        plane.wait(key, lambda b=body, a=allowed: plane.request("PATCH", path, b, MERGE, token)[0] == a)


def test_removed_by_its_overlay_it_leaves_nothing_in_the_cluster(plane: ControlPlane) -> None:
    plane.install(OVERLAYS / "repair")
    plane.kubectl("delete", "-k", str(OVERLAYS / "repair"), "--wait=false")
    kinds = "validatingadmissionpolicies,validatingadmissionpolicybindings,clusterroles,clusterrolebindings"
    left = plane.kubectl("get", kinds, "-o", "name").splitlines()
    ours = {name for name in left if "gpu-health-agent" in name}
    assert ours <= {
        f"clusterrole{kind}.rbac.authorization.k8s.io/gpu-health-agent-hardened" for kind in ("", "binding")
    } | {
        f"validatingadmissionpolicy{kind}.admissionregistration.k8s.io/gpu-health-agent-pod-status"
        for kind in ("", "binding")
    }, "what another overlay brought, which isn't this one's to remove"
