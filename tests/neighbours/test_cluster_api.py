"""Cluster API's own controllers beside the agent: the Machine of a node that needs another is replaced."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.conftest import OVERLAYS, Site, StartAgent
from tests.cluster.control_plane import ControlPlane
from tests.neighbours.beside import Place, beside
from tests.neighbours.programs import CLUSTER_API

HERE = Path(__file__).parent / "cluster_api"
MACHINES = "/apis/cluster.x-k8s.io/v1beta2/namespaces/default/machines"
PROVIDED = "/apis/infrastructure.cluster.x-k8s.io/v1/namespaces/default/testmachines"
MERGE = "application/merge-patch+json"


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """Machines, and the nodes that they become, are of one cluster here."""
    with beside(CLUSTER_API, "cluster-api", tmp_path_factory.mktemp("plane"), _arguments) as made:
        made.kubectl("apply", "-f", str(HERE / "provider.yaml"))
        made.kubectl("wait", "--for=condition=Established", "crd", "--all")
        access = base64.b64encode(made.kubeconfig.read_bytes()).decode()
        label = {"cluster.x-k8s.io/cluster-name": "my-cluster"}
        secret = {"metadata": {"name": "my-cluster-kubeconfig", "labels": label}, "data": {"value": access}}
        made.must("POST", "/api/v1/namespaces/default/secrets", {**secret, "type": "cluster.x-k8s.io/secret"})
        made.kubectl("apply", "-f", str(HERE / "cluster.yaml"))
        made.kubectl("apply", "-f", str(OVERLAYS / "cluster-api" / "machinehealthcheck.yaml"))
        yield made


def _arguments(place: Place) -> tuple[str, ...]:
    return ("--health-addr", f"127.0.0.1:{place.health}")


def listed(plane: ControlPlane, path: str) -> list[dict[str, Any]]:
    return list(plane.must("GET", path)["items"])


def provide(plane: ControlPlane, node: str) -> str:
    """As the provider would: the newest machine is this node. Its Machine's name."""

    def waiting() -> list[str]:
        return [one["metadata"]["name"] for one in listed(plane, PROVIDED) if "providerID" not in one.get("spec", {})]

    plane.wait("a machine is asked for", lambda: len(waiting()) == 1)
    (name,) = waiting()
    identity = f"test:///{node}"
    plane.must("PATCH", f"/api/v1/nodes/{node}", {"spec": {"providerID": identity}}, MERGE)
    made = {"spec": {"providerID": identity}, "status": {"initialization": {"provisioned": True}}}
    plane.must("PATCH", f"{PROVIDED}/{name}", made, MERGE)
    plane.wait("it is the node", lambda: node in [of(one) for one in listed(plane, MACHINES)])
    (machine,) = (one["metadata"]["name"] for one in listed(plane, MACHINES) if of(one) == node)
    return str(machine)


def names(plane: ControlPlane) -> list[str]:
    return [one["metadata"]["name"] for one in listed(plane, MACHINES)]


def of(machine: dict[str, Any]) -> str:
    """The node of a Machine."""
    return str(machine.get("status", {}).get("nodeRef", {}).get("name", ""))


def test_the_machine_of_a_drained_node_that_needs_another_is_replaced(site: Site, agent: StartAgent) -> None:
    plane, (bad, good) = site.plane, site.nodes
    machine = provide(plane, bad)
    settings = yaml.safe_load((OVERLAYS / "cluster-api" / "config.yaml").read_text())
    del settings["mode"]
    site.deploy("train", 1, pin=bad)
    running = agent(simulate="idle", **settings)
    plane.wait("healthy", lambda: running.state()["status"] == "healthy")
    running.inject("--gpu", "3", "--xid", "64")
    plane.wait("its pod moved", lambda: site.running("train") == [good])
    plane.wait("its Machine is gone", lambda: machine not in names(plane), 120)  # it looks each 15 s at the soonest
    events = listed(plane, "/api/v1/namespaces/default/events")
    said = [one["message"] for one in events if one["involvedObject"]["name"] == machine]
    assert f"Machine default/{machine} has been marked as unhealthy by default/gpu-health-agent" in said
    assert plane.request("GET", f"/api/v1/nodes/{bad}")[0] == 404
    assert provide(plane, good) != machine
