"""Who holds which GPU, by real kubelets; and what these, and pod status, say and don't say about a sick device."""

from __future__ import annotations

import json
import os
import re
import signal
import urllib.request
from typing import Any

from agent.model.errors import UnaskedError
from agent.sources.kubelet.pod_resources import PodResources, command_line
from agent.sources.kubelet.pods_api import PodsApi
from agent.sources.kubelet.pods_api import command_line as pods_api
from tests.nodes.conftest import PODS_API, UUIDS, Site, serves


def holders(site: Site, node: str = "n1") -> dict[str, Any]:
    """The test's own pods."""
    found = PodResources(command_line(site.rig.nodes[node].pod_resources)).who_holds()
    return {pod: uuids for pod, uuids in found.items() if pod.startswith(f"{site.name}/")}


def health(site: Site, app: str) -> list[str]:
    """Of the pod's devices, as its own status has it."""
    (container,) = site.pod(app)["status"]["containerStatuses"]
    return [one["health"] for device in container.get("allocatedResourcesStatus") or () for one in device["resources"]]


def how(site: Site, pod: str, node: str = "n1") -> str:
    """As the kubelet's Pods API has it, which asks no API server."""
    return PodsApi(pods_api(site.rig.nodes[node].folder / PODS_API)).who_runs()[pod]


def test_the_kubelet_names_each_pods_gpus_as_the_pod_has_them(site: Site) -> None:
    site.deploy("two", "n1", gpus=2)
    site.deploy("one", "n1")
    site.deploy("none", "n1", gpus=0)
    seen = {}
    for app in ("two", "one", "none"):
        name = site.pod(app)["metadata"]["name"]
        told = site.plane.kubectl("exec", f"--namespace={site.name}", name, "--", "env")
        seen[f"{site.name}/{name}"] = set(re.findall(r"GPU-[0-9a-f-]{36}", told))
    assert holders(site) == seen
    assert sorted(map(len, seen.values())) == [0, 1, 2]
    assert set().union(*seen.values()) <= set(UUIDS)


def test_a_pod_keeps_its_sick_gpu_and_its_status_calls_a_lost_one_healthy(site: Site) -> None:
    site.deploy("train", "n1")
    ((pod, uuids),) = holders(site).items()
    (uuid,) = uuids
    node = site.rig.nodes["n1"]
    assert health(site, "train") == ["Healthy"]

    node.sicken(uuid)
    site.plane.wait("the pod's status says so", lambda: health(site, "train") == ["Unhealthy"])
    site.plane.wait("one GPU fewer can be had", lambda: not node.ready())
    device = f"nvidia.com/gpu {uuid} Unhealthy"
    site.plane.wait("and the kubelet itself", lambda: how(site, pod).startswith(f"Running; {device}"))
    assert holders(site) == {pod: {uuid}}
    assert site.where("train") == ["n1"], "the kubelet ends no pod for it"

    node.sicken(f"GONE {uuid}")
    site.plane.wait("the plugin's silence reads as health", lambda: health(site, "train") == ["Healthy"])
    assert holders(site) == {pod: {uuid}}
    assert site.where("train") == ["n1"]


def test_while_no_api_server_answers_a_pod_on_a_bad_gpu_is_named_with_how_it_is(site: Site) -> None:
    site.deploy("train", "n1")
    ((pod, (uuid,)),) = holders(site).items()
    state = f"http://{site.agent('n1')['status']['podIP']}:9836/state"
    named = f"pods on the bad GPUs, by their kubelet: {pod}"

    def told() -> bool:
        with urllib.request.urlopen(state, timeout=5) as answer:
            return any(why.startswith(named) and "Running" in why for why in json.load(answer)["waits"])

    with site.paused():
        site.inject("n1", "--gpu", str(UUIDS.index(uuid)), "--xid", "95")
        site.plane.wait("it is judged", lambda: site.state("n1")["status"] == "unhealthy")
        server = site.plane.pid("kube-apiserver")
        os.kill(server, signal.SIGSTOP)
        try:
            # A paused agent looks once a minute, and then waits ten seconds for the answer.
            site.plane.wait("it is named", told, 120)
        finally:
            os.kill(server, signal.SIGCONT)
        site.inject("n1", "--clear")
    site.plane.wait("the node is back", lambda: site.taints("n1") == [] and serves(site.rig, "n1"), 120)


def test_a_kubelet_that_starts_again_still_knows(site: Site) -> None:
    site.deploy("train", "n1")
    before = holders(site)
    site.rig.nodes["n1"].signal("kubelet", "KILL")
    site.plane.wait("it answers again", lambda: _answers(site))
    assert holders(site) == before
    site.plane.wait("the node is Ready with its GPUs", site.rig.nodes["n1"].ready)
    assert site.where("train") == ["n1"]


def _answers(site: Site) -> bool:
    try:
        return bool(holders(site))
    except UnaskedError:
        return False
