"""A drill's fault by the simulation of a real pod, through the API server's exec, and its end with the annotation."""

from __future__ import annotations

import json

import pytest

from agent.actions.api import connect
from agent.drill.cluster import Cluster, node_path
from agent.drill.pod_exec import executor
from agent.model.errors import RefusedError
from agent.model.text import normalise_pci
from agent.simulation.gpu import h100_8
from tests.nodes.conftest import NAMESPACE, Site
from tests.nodes.test_end_to_end import HARD, index

NONCE = "0123456789abcdef" * 2


def test_a_command_in_a_container_is_heard_and_its_failure_told(site: Site) -> None:
    execute = executor(str(site.rig.plane.kubeconfig))
    name = site.agent("n1")["metadata"]["name"]
    assert execute(NAMESPACE, name, "sources", ["python3", "-c", "print('x' * 100_000)"]) == "x" * 100_000 + "\n"
    with pytest.raises(RefusedError, match=r"python3 in gpu-health-agent/.*: no such luck"):
        execute(NAMESPACE, name, "sources", ["python3", "-c", "import sys; sys.exit('no such luck')"])
    with pytest.raises(RefusedError, match=r"not valid for pod|not found"):
        execute(NAMESPACE, name, "nowhere", ["true"])
    with pytest.raises(RefusedError, match="not found"):
        execute(NAMESPACE, "nobody", "sources", ["true"])


def test_an_injected_drill_takes_the_pod_on_its_gpu_and_is_over_with_the_annotation(site: Site) -> None:
    site.deploy("train", "n1")
    pod = site.pod("train")
    bad = h100_8()[int(index(site, pod))]
    kubeconfig = str(site.rig.plane.kubeconfig)
    cluster = Cluster(connect(kubeconfig), site.name, NAMESPACE, executor(kubeconfig))
    cluster.annotate(node_path("n1"), NONCE)
    cards = [f"--card={gpu.uuid}={gpu.pci.lower().removeprefix('0000')}" for gpu in h100_8()]
    said = cluster.run(
        site.agent("n1"),
        "sources",
        [
            "python3",
            "-m",
            "agent.drill.on_node",
            "--simulated",
            f"--nonce={NONCE}",
            f"--pod={site.name}/{pod['metadata']['name']}",
            *cards,
        ],
    )
    (written,) = json.loads(said)["written"]
    assert written["pci"] == normalise_pci(bad.pci)
    site.plane.wait("taint", lambda: site.taints("n1") == [HARD])
    fatal = [fault["id"] for fault in site.state("n1")["faults"] if fault["severity"] == "fatal"]
    assert fatal == [f"xid-74@{written['pci']}/drill"]
    site.plane.wait("the pod moves", lambda: site.where("train") == ["n2"])
    cluster.release(NONCE)
    site.plane.wait("the node is back", lambda: site.taints("n1") == [])
