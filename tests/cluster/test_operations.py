"""The document on installing, command by command as it is printed, on a cluster of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.build import assets
from tests.cluster.conftest import OVERLAYS, Site, StartAgent
from tests.cluster.control_plane import ControlPlane
from tests.cluster.helm import helm
from tests.documents import INSTALLING, shell_blocks
from tests.running import environment

ROOT = OVERLAYS.parents[1]
NAMESPACE = "/api/v1/namespaces/gpu-health-agent"
INSTALL, HELM, UPGRADE, UNINSTALL = shell_blocks(INSTALLING)


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A cluster with NVIDIA's container toolkit and nothing of ours."""
    made = ControlPlane(tmp_path_factory.mktemp("operations"), assets())
    made.up(nodes=0)
    made.toolkit()
    yield made
    made.down()


@pytest.fixture(scope="module")
def shell(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a person whose kubectl knows this cluster."""
    home = tmp_path_factory.mktemp("home")
    (home / ".kube").mkdir()
    shutil.copy(plane.kubeconfig, home / ".kube" / "config")
    path = [str(assets()), str(helm().parent), str(Path(sys.executable).parent), os.environ["PATH"]]
    return {**environment(), "HOME": str(home), "PATH": ":".join(path)}


def run(line: str, shell: dict[str, str]) -> str:
    done = subprocess.run(["sh", "-c", line], cwd=ROOT, env=shell, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{line}: {done.stderr}"
    return done.stdout


def mode(plane: ControlPlane) -> str:
    """Of the configuration that every pod of the DaemonSet has; empty while they are rolled out."""
    made = plane.must("GET", "/apis/apps/v1/namespaces/gpu-health-agent/daemonsets/gpu-health-agent")
    status = made.get("status", {})
    counted = ("desiredNumberScheduled", "updatedNumberScheduled", "numberReady")
    seen = status.get("observedGeneration") == made["metadata"]["generation"]
    if not seen or any(status.get(name) != 2 for name in counted):
        return ""
    volumes = made["spec"]["template"]["spec"]["volumes"]
    (name,) = (volume["configMap"]["name"] for volume in volumes if volume["name"] == "config")
    return str(yaml.safe_load(plane.must("GET", f"{NAMESPACE}/configmaps/{name}")["data"]["config.yaml"])["mode"])


def left(plane: ControlPlane) -> list[str]:
    """What is ours in the cluster, namespace apart."""
    kinds = (
        "validatingadmissionpolicies,validatingadmissionpolicybindings,clusterroles,clusterrolebindings,"
        "flowschemas,prioritylevelconfigurations"
    )
    return [name for name in plane.kubectl("get", kinds, "-o", "name").splitlines() if "gpu-health-agent" in name]


def test_installed_by_kubectl_in_three_commands_upgraded_rolled_back_and_removed(
    site: Site, agent: StartAgent, shell: dict[str, str]
) -> None:
    plane = site.plane
    observe, look, evict = INSTALL
    run(observe, shell)
    plane.wait("it observes", lambda: mode(plane) == "observe")
    assert all(node in run(look, shell) for node in site.nodes)
    run(evict, shell)
    plane.wait("it acts", lambda: mode(plane) == "evict")

    again, back = UPGRADE
    run(again, shell)
    assert mode(plane) == "evict"
    run(back, shell)
    plane.wait("it is as before", lambda: mode(plane) == "observe")

    running = agent(simulate="idle")  # the pods are kwok's: one real agent with the credential of such a pod
    plane.wait("healthy", lambda: running.state()["status"] == "healthy")
    assert "healthy" in run(look, shell)
    running.inject("--gpu", "3", "--xid", "95")
    plane.wait("withdrawn", lambda: site.taints() == ["gpu-health-agent/unhealthy"])
    told = run("gpu-health-agent nodes", shell)
    assert f"{site.nodes[0]} " in told
    assert "xid-95" in told
    assert run("kubectl gpu-health", shell).splitlines()[0] == told.splitlines()[0]
    assert {site.nodes[0], "--history"} <= {*run("kubectl __complete gpu-health ''", shell).splitlines()}
    assert "xid-95@" in run(f"gpu-health-agent nodes {site.nodes[0]}", shell)
    no_agent, release, rest = UNINSTALL
    run(no_agent, shell)
    running.stop()
    assert "gpu-health-agent" in str(site.node())
    run(release, shell)
    assert not [key for key in marks(site.node()) if "gpu-" in key.lower()]
    run(rest, shell)
    plane.wait("the namespace is gone", lambda: plane.request("GET", NAMESPACE)[0] == 404)
    assert left(plane) == []


def marks(node: dict[str, Any]) -> set[str]:
    """The keys of what is written on a Node, but for how the test made it."""
    found = {*node["metadata"]["labels"], *node["metadata"].get("annotations", {})} - {"nvidia.com/gpu.present"}
    found |= {taint["key"] for taint in node["spec"].get("taints") or ()}
    return found | {condition["type"] for condition in node["status"]["conditions"]}


def test_by_helm_installed_upgraded_and_removed(site: Site, shell: dict[str, str]) -> None:
    plane = site.plane
    install, upgrade = HELM
    run(install, shell)
    plane.wait("it observes", lambda: mode(plane) == "observe")
    run(upgrade, shell)
    plane.wait("it acts", lambda: mode(plane) == "evict")
    for line in (*UNINSTALL[:2], "helm uninstall gpu-health-agent --namespace gpu-health-agent"):
        run(line, shell)
    assert left(plane) == []
