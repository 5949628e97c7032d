"""Every overlay is applied to a real API server, one after the other, and its pods are scheduled where they belong."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.build import assets
from tests.cluster.conftest import OVERLAYS
from tests.cluster.control_plane import ControlPlane
from tests.documents import DOCUMENTS, INSTALLING, blocks

MERGE = "application/merge-patch+json"
DAEMONSET = "/apis/apps/v1/namespaces/gpu-health-agent/daemonsets/gpu-health-agent"
COMPONENTS = OVERLAYS.parent / "components"
BASE_FIRST = sorted((path.name for path in OVERLAYS.iterdir()), key=lambda name: (name != "observe", name))


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
    tainted = {
        "spec": {
            "taints": [
                {"key": "gpu-health-agent/unhealthy", "effect": "NoSchedule"},
                {"key": "nvidia.com/gpu", "effect": "NoSchedule"},
            ]
        }
    }
    made.must("PATCH", "/api/v1/nodes/dead-gpu", tainted, MERGE)
    yield made
    made.down()


def rolled_out(plane: ControlPlane) -> bool:
    """Both nodes' pods are those of the DaemonSet as it is now."""
    made = plane.must("GET", DAEMONSET)
    status = made.get("status", {})
    seen = status.get("observedGeneration") == made["metadata"]["generation"]
    return bool(seen and status.get("updatedNumberScheduled") == status.get("numberReady") == 2)


def pods(plane: ControlPlane) -> list[dict[str, Any]]:
    found = plane.must("GET", "/api/v1/namespaces/gpu-health-agent/pods")["items"]
    return [pod for pod in found if not pod["metadata"].get("deletionTimestamp")]


def configured(plane: ControlPlane) -> str:
    """The configuration file that the pods have."""
    (name,) = {v["configMap"]["name"] for p in pods(plane) for v in p["spec"]["volumes"] if v["name"] == "config"}
    return str(plane.must("GET", f"/api/v1/namespaces/gpu-health-agent/configmaps/{name}")["data"]["config.yaml"])


@pytest.mark.parametrize("overlay", BASE_FIRST)
def test_it_is_applied_and_its_pods_run_on_the_nodes_with_gpus_or_with_our_label(
    plane: ControlPlane, overlay: str
) -> None:
    plane.install(OVERLAYS / overlay)
    plane.wait("rolled out", lambda: rolled_out(plane))
    assert {pod["spec"]["nodeName"] for pod in pods(plane)} == {"gpu", "dead-gpu"}
    own = OVERLAYS / overlay / "config.yaml"
    assert configured(plane) == (own if own.exists() else OVERLAYS.parent / "base" / "config.yaml").read_text()


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
    warnings = {
        p["metadata"]["name"]: p["status"].get("typeChecking", {}).get("expressionWarnings")
        for p in plane.must("GET", path)["items"]
    }
    assert warnings
    assert not any(warnings.values()), warnings


def test_the_components_go_together_in_a_folder_of_ones_own(plane: ControlPlane, tmp_path: Path) -> None:
    """The one of the document, and all of them at once, but OpenShift's."""
    (block,) = blocks("kustomize", DOCUMENTS[INSTALLING])
    (tmp_path / "config.yaml").write_text("mode: taint\n")
    (tmp_path / "kustomization.yaml").write_text(
        block.replace("../gpu-health-agent", os.path.relpath(OVERLAYS.parents[1], tmp_path))
    )
    rendered = plane.kubectl("kustomize", str(tmp_path))
    for part in ("mode: taint", "name: gpu-health-agent-repair", "name: gpu-health-agent-hardened"):
        assert part in rendered
    made = yaml.safe_load(block)
    made["components"] = [
        f"../gpu-health-agent/daemonset/components/{path.name}"
        for path in COMPONENTS.iterdir()
        if path.is_dir() and path.name != "openshift"  # OpenShift's own kind, which no other API server knows
    ]
    text = json.dumps(made).replace("../gpu-health-agent", os.path.relpath(OVERLAYS.parents[1], tmp_path))
    (tmp_path / "kustomization.yaml").write_text(text)
    plane.install(tmp_path)


def test_the_pods_outlast_all_others_and_are_replaced_a_tenth_at_a_time(plane: ControlPlane) -> None:
    """As the API server understands the manifests."""
    plane.install(OVERLAYS / "evict")
    plane.wait("rolled out", lambda: rolled_out(plane))
    rolling = {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "10%", "maxSurge": 0}}
    assert plane.must("GET", DAEMONSET)["spec"]["updateStrategy"] == rolling
    highest = plane.must("GET", "/apis/scheduling.k8s.io/v1/priorityclasses/system-node-critical")["value"]
    for pod in pods(plane):
        assert pod["spec"]["priority"] == highest
        assert {"operator": "Exists"} in pod["spec"]["tolerations"]
        agent = pod["spec"]["containers"][0]
        assert {"name": "NO_PROXY", "value": "$(KUBERNETES_SERVICE_HOST)"} in agent["env"]


def test_what_apply_on_the_folder_gives_only_observes(plane: ControlPlane) -> None:
    rendered = [plane.kubectl("kustomize", str(path)) for path in (OVERLAYS.parent, OVERLAYS / "observe")]
    assert rendered[0] == rendered[1]


def test_without_the_repair_overlay_no_operand_label_and_no_replacement_is_ours(plane: ControlPlane) -> None:
    plane.install(OVERLAYS / "evict")
    plane.wait("rolled out", lambda: rolled_out(plane))
    token = plane.agent_token("gpu")
    path = "/api/v1/nodes/gpu?dryRun=All"

    def answers(key: str, code: int) -> bool:
        return plane.request("PATCH", path, {"metadata": {"labels": {key: "x"}}}, MERGE, token)[0] == code

    for key, allowed in (("gpu-health-agent/state", 200), ("nvidia.com/gpu.deploy.dcgm", 422)):
        plane.wait(key, partial(answers, key, allowed))


def test_removed_by_its_overlay_it_leaves_nothing_in_the_cluster(plane: ControlPlane) -> None:
    plane.install(OVERLAYS / "repair")
    plane.kubectl("delete", "-k", str(OVERLAYS / "repair"), "--wait=false")
    kinds = (
        "validatingadmissionpolicies,validatingadmissionpolicybindings,clusterroles,clusterrolebindings,"
        "flowschemas,prioritylevelconfigurations"
    )
    left = plane.kubectl("get", kinds, "-o", "name").splitlines()
    ours = {name for name in left if "gpu-health-agent" in name}
    assert ours <= {
        f"clusterrole{kind}.rbac.authorization.k8s.io/gpu-health-agent-{name}"
        for kind in ("", "binding")
        for name in ("dra", "hardened")
    } | {
        f"validatingadmissionpolicy{kind}.admissionregistration.k8s.io/gpu-health-agent-{name}"
        for kind in ("", "binding")
        for name in ("fences", "pod-status")
    }, "what another overlay brought, which isn't this one's to remove"
