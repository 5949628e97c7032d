"""Whoever has one namespace's ``edit`` and no right on Nodes finds why a pod was moved, by ``kubectl describe``."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.cluster.conftest import Site, StartAgent
from tests.cluster.test_policies import in_force
from tests.cluster.test_spine import XID_79


class Person:
    """kubectl in the hands of somebody who may edit this one namespace."""

    def __init__(self, site: Site) -> None:
        plane, self._namespace = site.plane, site.name
        plane.must("POST", f"/api/v1/namespaces/{site.name}/serviceaccounts", {"metadata": {"name": "person"}})
        plane.kubectl(
            "create", "rolebinding", "person", "--clusterrole=edit", f"--serviceaccount={site.name}:person",
            f"--namespace={site.name}",
        )  # fmt: skip
        self._kubeconfig: Path = plane.account_kubeconfig(site.name, "person")
        self._kubectl = plane.command()[0]

    def __call__(self, *arguments: str) -> str:
        command = [self._kubectl, f"--kubeconfig={self._kubeconfig}", f"--namespace={self._namespace}", *arguments]
        ran = subprocess.run(command, capture_output=True, text=True)
        return ran.stdout + ran.stderr


def test_why_a_pod_was_moved_is_found_on_what_controls_it_without_a_right_on_nodes(
    site: Site, agent: StartAgent
) -> None:
    plane, node = site.plane, site.nodes[0]
    person = Person(site)
    site.deploy("web", 2, pin=node)
    site.start_job("train", pin=node)
    pods = {one["metadata"]["name"] for one in plane.must("GET", f"/api/v1/namespaces/{site.name}/pods")["items"]}
    in_force(plane, plane.agent_token(node), site.nodes[1])
    running = agent(kubeconfig=plane.agent_kubeconfig(node))
    plane.wait("healthy", lambda: running.state()["status"] == "healthy")
    running.kernel(XID_79)
    plane.wait("moved", lambda: site.running("web") + site.running("train") == [site.nodes[1]] * 3)
    assert "forbidden" in person("describe", "node", node)
    for one in ("deployment/web", "job/train"):
        plane.wait(f"told on {one}", lambda one=one: "MovedForGpuFault" in person("describe", one), 20)  # type: ignore[misc]
        (line,) = (text for text in person("describe", one).splitlines() if "MovedForGpuFault" in text)
        assert f"was asked to leave node {node} (more: kubectl describe node {node}): xid-79@0000:1b:00.0" in line
    told = person("get", "events", "--field-selector=reason=MovedForGpuFault,involvedObject.kind=Pod", "-o", "name")
    assert len(told.splitlines()) == 3
    for pod in pods:
        assert "xid-79@" in person("get", "events", "--field-selector", f"involvedObject.name={pod}")
    assert not [why for why in running.state()["waits"] if "Event" in why]
    assert b'"level": "debug"' not in running.log.read_bytes()
    running.kill()
    running.start("--log-level", "debug")
    plane.wait("its reports are logged", lambda: b'"level": "debug"' in running.log.read_bytes())
    again = person("get", "events", "--field-selector=reason=MovedForGpuFault,involvedObject.kind=Pod", "-o", "name")
    assert again == told, "an agent that begins anew tells nothing again"


@pytest.mark.parametrize("kind", ["replicaset", "statefulset"])
def test_a_controller_without_a_deployment_is_told_itself(site: Site, agent: StartAgent, kind: str) -> None:
    plane, node, person = site.plane, site.nodes[0], Person(site)
    labels = {"app": "web"}
    template = {"metadata": {"labels": labels}, "spec": site._pod()}
    spec = {"replicas": 1, "serviceName": "web", "selector": {"matchLabels": labels}, "template": template}
    if kind == "replicaset":
        del spec["serviceName"]
    with site._pinned(node):
        plane.must("POST", f"/apis/apps/v1/namespaces/{site.name}/{kind}s", {"metadata": {"name": "web"}, "spec": spec})
        plane.wait("its pod runs", lambda: site.running("web") == [node])
    running = agent()
    plane.wait("healthy", lambda: running.state()["status"] == "healthy")
    running.kernel(XID_79)
    plane.wait("told", lambda: "MovedForGpuFault" in person("describe", kind, "web"))
