"""GPUs that are offered by DRA: read from a real API server's ResourceSlices, with the shipped RBAC and without."""

from __future__ import annotations

import copy
from typing import Any

from tests.cluster.conftest import AgentProcess, Site, StartAgent
from tests.cluster.test_trial_of_rights import RBAC, bind, readyz

STRATEGIC = "application/strategic-merge-patch+json"
SLICES = "/apis/resource.k8s.io/v1/resourceslices"


def by_dra(site: Site, tainted: int) -> None:
    """No device plugin is on the first node, and NVIDIA's DRA driver publishes eight devices."""
    none = {"nvidia.com/gpu": "0"}
    body = {"status": {"capacity": none, "allocatable": none}}
    site.plane.must("PATCH", f"/api/v1/nodes/{site.nodes[0]}/status", body, STRATEGIC)
    taints = {"taints": [{"key": "gpu.nvidia.com/gpu-lost", "effect": "NoSchedule"}]}
    spec = {
        "driver": "gpu.nvidia.com",
        "nodeName": site.nodes[0],
        "pool": {"name": site.nodes[0], "generation": 1, "resourceSliceCount": 1},
        "devices": [{"name": f"gpu-{n}", **(taints if n < tainted else {})} for n in range(8)],
    }
    made = {"apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice", "metadata": {"name": site.nodes[0]}}
    site.plane.must("POST", SLICES, {**made, "spec": spec})


def withheld(state: dict[str, Any]) -> list[str]:
    return [fault["message"] for fault in state["faults"] if fault["id"] == "gpu-withheld@node"]


def rests(site: Site, running: AgentProcess) -> None:
    site.plane.wait("it rests", lambda: (s := running.state())["status"] == "healthy" and not s["waits"])


def test_a_dra_driver_that_has_tainted_every_device_withholds_the_gpus(site: Site, agent: StartAgent) -> None:
    by_dra(site, tainted=8)
    running = agent(simulate="idle", policy={"withheld_confirm_s": 1})
    site.plane.wait("withheld", lambda: withheld(running.state()))
    (said,) = withheld(running.state())
    assert "pods are offered 0 of 8 devices of gpu.nvidia.com, and NVML reads 8 GPUs" in said
    site.plane.wait("degraded", lambda: site.taints() == ["gpu-health-agent/degraded"])
    site.plane.must("DELETE", f"{SLICES}/{site.nodes[0]}")


def test_one_device_that_is_free_is_an_offer(site: Site, agent: StartAgent) -> None:
    by_dra(site, tainted=7)
    running = agent(simulate="idle", policy={"withheld_confirm_s": 1})
    running.wait_for_simulation()
    site.plane.wait("ready", lambda: readyz(running) == 200)
    rests(site, running)
    assert withheld(running.state()) == []
    site.plane.must("DELETE", f"{SLICES}/{site.nodes[0]}")


def test_an_agent_that_may_read_no_slices_says_so_once_and_is_ready(site: Site, agent: StartAgent) -> None:
    plane = site.plane
    by_dra(site, tainted=8)
    plane.must("POST", f"/api/v1/namespaces/{site.name}/serviceaccounts", {"metadata": {"name": "partial"}})
    rules: list[dict[str, Any]] = plane.must("GET", f"{RBAC}/clusterroles/gpu-health-agent")["rules"]
    fewer = [rule for rule in copy.deepcopy(rules) if "resourceslices" not in rule["resources"]]
    assert len(fewer) == len(rules) - 1
    plane.must("POST", f"{RBAC}/clusterroles", {"metadata": {"name": site.name}, "rules": fewer})
    bind(site, "ClusterRoleBinding", "", site.name)
    bind(site, "RoleBinding", "/namespaces/gpu-health-agent", "gpu-health-agent")
    running = agent(kubeconfig=plane.account_kubeconfig(site.name, "partial"), simulate="idle")
    plane.wait("ready", lambda: readyz(running) == 200)
    rests(site, running)
    plane.wait("said", lambda: "ResourceSlices can't be read" in running.log.read_text())
    said = [line for line in running.log.read_text().splitlines() if "ResourceSlices" in line]
    assert len(said) == 1
    assert 'cannot list resource \\"resourceslices\\" in API group \\"resource.k8s.io\\"' in said[0]
    assert withheld(running.state()) == []
    plane.must("DELETE", f"{SLICES}/{site.nodes[0]}")
