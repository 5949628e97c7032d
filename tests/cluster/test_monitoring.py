"""The monitoring manifests on a real API server; stubs stand in for prometheus-operator's resource definitions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tests.cluster.control_plane import ControlPlane

FOLDER = Path(__file__).parents[2] / "daemonset" / "monitoring"
GROUP = "monitoring.coreos.com"


def stub(kind: str) -> dict[str, Any]:
    """Any object of this kind is one."""
    plural = f"{kind.lower()}s"
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "versions": [version],
            "names": {"kind": kind, "plural": plural, "singular": kind.lower()},
        },
    }


def install_stubs(plane: ControlPlane) -> None:
    plane.kubectl("apply", "-f", "-", text=yaml.safe_dump_all([stub("PodMonitor"), stub("PrometheusRule")]))
    plane.kubectl(
        "wait",
        "--for=condition=Established",
        "--timeout=60s",
        "crd",
        f"podmonitors.{GROUP}",
        f"prometheusrules.{GROUP}",
    )


def test_the_monitoring_manifests_apply_beside_the_agent(plane: ControlPlane) -> None:
    install_stubs(plane)
    plane.kubectl("apply", "-k", str(FOLDER))
    path = f"/apis/{GROUP}/v1/namespaces/gpu-health-agent"
    monitor = plane.must("GET", f"{path}/podmonitors/gpu-health-agent")
    pods = plane.must("GET", "/apis/apps/v1/namespaces/gpu-health-agent/daemonsets/gpu-health-agent")["spec"][
        "template"
    ]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= pods["metadata"]["labels"].items()
    ports = {port["name"] for container in pods["spec"]["containers"] for port in container.get("ports", ())}
    assert {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]} <= ports
    assert plane.must("GET", f"{path}/prometheusrules/gpu-health-agent")["spec"]["groups"]
    board = plane.must("GET", "/api/v1/namespaces/gpu-health-agent/configmaps/gpu-health-agent-dashboard")
    assert board["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert board["data"]["dashboard.json"] == (FOLDER / "dashboard.json").read_text()
