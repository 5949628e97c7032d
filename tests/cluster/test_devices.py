"""One GPU fenced on a real API server, with its scheduler and its controllers; and what a stolen token can't."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.actions.fences import RULES
from tests.chart import opened
from tests.cluster.conftest import OVERLAYS, AgentProcess, Site, StartAgent
from tests.cluster.control_plane import ControlPlane
from tests.cluster.test_crashes import Proxy, killed_after_each_write, proxied
from tests.cluster.test_offered import SLICES, STRATEGIC
from tests.cluster.test_policies import MERGE, REFUSED, Stolen
from tests.cluster.test_repair import jobs

__all__ = ["proxied"]
DRIVER, DRA = "gpu.nvidia.com", "/apis/resource.k8s.io/v1"
KEY = "gpu-health-agent/unhealthy"


@pytest.fixture(scope="module")
def plane(plane: ControlPlane) -> Iterator[ControlPlane]:
    """With the component, and a class of devices for everybody's claims."""
    folder = OVERLAYS.parent / "components" / "dra"
    added = [word for part in ("rbac", "policies") for word in ("-f", str(folder / f"{part}.yaml"))]
    plane.kubectl("apply", *added)
    every = {"selectors": [{"cel": {"expression": f"device.driver == '{DRIVER}'"}}]}
    plane.must("POST", f"{DRA}/deviceclasses", {"metadata": {"name": "gpus"}, "spec": every})
    yield plane
    plane.kubectl("delete", *added)
    plane.must("DELETE", f"{DRA}/deviceclasses/gpus")


@pytest.fixture
def published(site: Site) -> Iterator[None]:
    """Both nodes offer the simulation's GPUs by a driver that nobody runs."""
    none = {"nvidia.com/gpu": "0"}
    for node in site.nodes:
        body = {"status": {"capacity": none, "allocatable": none}}
        site.plane.must("PATCH", f"/api/v1/nodes/{node}/status", body, STRATEGIC)
        slots = (0x1B, 0x43, 0x52, 0x61, 0x9D, 0xC3, 0xD1, 0xDF)
        pool = {"name": node, "generation": 1, "resourceSliceCount": 1}
        devices = [
            {"name": f"gpu-{n}", "attributes": {"resource.kubernetes.io/pciBusID": {"string": f"0000:{slot:02x}:00.0"}}}
            for n, slot in enumerate(slots)
        ]
        spec = {"driver": DRIVER, "nodeName": node, "pool": pool, "devices": devices}
        made = {"apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice", "metadata": {"name": node}}
        site.plane.must("POST", SLICES, {**made, "spec": spec})
    yield
    for node in site.nodes:
        site.plane.request("DELETE", f"{SLICES}/{node}")


def claims(site: Site, name: str, pin: str | None = None) -> None:
    """A Deployment of one pod with a claim for any one device."""
    one = {"devices": {"requests": [{"name": "gpu", "exactly": {"deviceClassName": "gpus"}}]}}
    path = f"{DRA}/namespaces/{site.name}/resourceclaimtemplates"
    site.plane.must("POST", path, {"metadata": {"name": name}, "spec": {"spec": one}})
    pod = site._pod(gpus=0)
    pod["resourceClaims"] = [{"name": "gpu", "resourceClaimTemplateName": name}]
    pod["nodeSelector"] = {"kubernetes.io/hostname": pin} if pin else pod["nodeSelector"]
    template = {"metadata": {"labels": {"app": name}}, "spec": pod}
    spec = {"replicas": 1, "selector": {"matchLabels": {"app": name}}, "template": template}
    site.plane.must(
        "POST", f"/apis/apps/v1/namespaces/{site.name}/deployments", {"metadata": {"name": name}, "spec": spec}
    )
    site.plane.wait(f"{name} runs", lambda: len(site.running(name)) == 1)


def pod(site: Site, app: str) -> dict[str, Any]:
    path = f"/api/v1/namespaces/{site.name}/pods?labelSelector=app%3D{app}"
    there = [one for one in site.plane.must("GET", path)["items"] if not one["metadata"].get("deletionTimestamp")]
    return dict(there[0]) if there else {}


def given(site: Site, app: str) -> tuple[str, str] | None:
    """Pool and device of its claim; None while it has none."""
    made = pod(site, app).get("status", {}).get("resourceClaimStatuses")
    if not made:
        return None
    claim = site.plane.must("GET", f"{DRA}/namespaces/{site.name}/resourceclaims/{made[0]['resourceClaimName']}")
    if "allocation" not in claim.get("status", {}):
        return None
    (result,) = claim["status"]["allocation"]["devices"]["results"]
    return result["pool"], result["device"]


def rules(site: Site) -> dict[str, str]:
    """Of the site's nodes: name → effect."""
    found = site.plane.must("GET", RULES)["items"]
    ours = [rule for rule in found if rule["spec"]["deviceSelector"].get("pool") in site.nodes]
    return {rule["metadata"]["name"]: rule["spec"]["taint"]["effect"] for rule in ours}


def test_one_device_is_fenced_its_pod_leaves_a_new_claim_lands_elsewhere_and_a_kill_leaves_nothing(
    site: Site, agent: StartAgent, published: None, proxied: tuple[Proxy, Path]
) -> None:
    proxy, kubeconfig = proxied
    here = site.nodes[0]
    with site._pinned(here):
        claims(site, "good")
        claims(site, "bad")
    stays, was = pod(site, "good")["metadata"]["uid"], given(site, "bad")
    assert was
    device = was[1]
    rule = f"gpu-health-agent.{here}.{DRIVER}.{device}"
    running = agent(simulate="idle", kubeconfig=kubeconfig, presets=["dra"])
    running.wait_for_simulation()
    died = threading.Event()

    def kill(method: str, path: str) -> None:
        if "devicetaintrules" in path and not died.is_set():
            died.set()
            running.kill()

    proxy.written = kill
    running.inject("--gpu", device.removeprefix("gpu-"), "--xid", "95")
    site.plane.wait("killed once the rule was made", died.is_set)
    assert rules(site) == {rule: "None"}
    running.start()
    site.plane.wait("fenced", lambda: rules(site) == {rule: "NoSchedule"})
    assert [(t["key"], t["effect"]) for t in site.node()["spec"]["taints"]] == [(KEY, "PreferNoSchedule")]
    site.plane.wait("its pod left", lambda: given(site, "bad") not in (None, was) and site.running("bad"))
    assert pod(site, "good")["metadata"]["uid"] == stays
    claims(site, "new", pin=here)
    new = given(site, "new")
    assert new, "the node's others stay in service"
    assert (new[0], new[1] != device) == (here, True)
    (said,) = running.state()["fences"]
    assert "1 pod would be evicted" in said
    running.inject("--gpu", device.removeprefix("gpu-"), "--clear")
    dismissed(site, running)
    site.plane.wait("released", lambda: rules(site) == {} and site.taints() == [])


def dismissed(site: Site, running: AgentProcess) -> None:
    """By a person: all faults."""
    word = ",".join(fault["id"] for fault in running.state()["faults"])
    body = {"metadata": {"annotations": {"gpu-health-agent/dismiss": word}}}
    site.plane.must("PATCH", f"/api/v1/nodes/{site.nodes[0]}", body, MERGE)


def test_killed_after_every_write_from_the_taint_on_one_device_is_fenced_and_none_is_left(
    site: Site, agent: StartAgent, published: None, proxied: tuple[Proxy, Path]
) -> None:
    proxy, kubeconfig = proxied
    with site._pinned(site.nodes[0]):
        claims(site, "good")
        claims(site, "bad")
    stays, was = pod(site, "good")["metadata"]["uid"], given(site, "bad")
    assert was
    number = was[1].removeprefix("gpu-")
    repair = {"reset_gpu": "gpu-reset", "pause_s": 1}
    running = agent(simulate="idle", kubeconfig=kubeconfig, presets=["dra"], repair=repair)
    site.plane.wait("healthy", lambda: running.state()["status"] == "healthy")
    seen = set[str]()

    def see() -> None:
        seen.update(f"{name.rpartition('.')[2]} {effect}" for name, effect in rules(site).items())

    killed = killed_after_each_write(site, proxy, running, number, see)
    assert rules(site) == {}
    assert seen == {f"{was[1]} None", f"{was[1]} NoSchedule"}
    assert len(jobs(site)) == 1, killed
    assert pod(site, "good")["metadata"]["uid"] == stays
    assert given(site, "bad") != was
    assert len([write for write in killed if "devicetaintrules" in write]) == 3, killed


def test_by_choice_kubernetes_deletes_what_a_budget_protects_at_the_deadline_and_the_policy_knows_that_choice(
    site: Site, agent: StartAgent, published: None
) -> None:
    with site._pinned(site.nodes[0]):
        claims(site, "good")
        claims(site, "bad")
    site.budget("bad", 1)
    stays, was = pod(site, "good")["metadata"]["uid"], given(site, "bad")
    assert was
    drain = {"on_deadline": "no_execute", "gather_s": 0, "deadline_s": {"reset_gpu": 3}}
    running = agent(simulate="idle", presets=["dra"], drain=drain)
    running.wait_for_simulation()
    running.inject("--gpu", was[1].removeprefix("gpu-"), "--xid", "95")
    rule = f"gpu-health-agent.{site.nodes[0]}.{DRIVER}.{was[1]}"

    def told() -> bool:
        return any("have Kubernetes delete" in why and "that was not chosen" in why for why in running.state()["waits"])

    site.plane.wait("the policy refuses what was not chosen", told)
    assert (rules(site), given(site, "bad")) == ({rule: "NoSchedule"}, was)
    policy = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/gpu-health-agent-fences"
    (effects,) = opened("dra-no-execute").values()

    def allow(expression: str) -> None:
        change = [{"op": "replace", "path": "/spec/variables/2/expression", "value": expression}]
        site.plane.must("PATCH", policy, change, "application/json-patch+json")

    allow(effects)
    try:
        site.plane.wait("its effect", lambda: rules(site) == {rule: "NoExecute"})
        site.plane.wait("its pod left", lambda: given(site, "bad") not in (None, was) and site.running("bad"))
        assert pod(site, "good")["metadata"]["uid"] == stays
    finally:
        allow("['NoSchedule']")
    running.inject("--gpu", was[1].removeprefix("gpu-"), "--clear")
    dismissed(site, running)
    site.plane.wait("released", lambda: rules(site) == {} and site.taints() == [])


def test_a_stolen_token_fences_single_devices_of_its_own_node_alone_and_they_go_with_it(site: Site) -> None:
    stolen = Stolen(site)

    def make(
        node: str = stolen.node, effect: str = "None", key: str = KEY, name: str = "", owner: str = "Node", **parts: str
    ) -> int:
        selector = {"driver": DRIVER, "pool": node, "device": "gpu-0", **parts}
        uid = site.node(site.nodes.index(node))["metadata"]["uid"]
        owners = [{"apiVersion": "v1", "kind": owner, "name": node, "uid": uid}] if owner else []
        metadata = {"name": name or f"gpu-health-agent.{node}.{DRIVER}.gpu-0", "ownerReferences": owners}
        spec = {"deviceSelector": {k: v for k, v in selector.items() if v}, "taint": {"key": key, "effect": effect}}
        body = {"apiVersion": "resource.k8s.io/v1", "kind": "DeviceTaintRule", "metadata": metadata, "spec": spec}
        return stolen("POST", RULES, body)

    site.plane.wait("the policy is in force", lambda: make(key="theirs") in REFUSED)
    assert make(stolen.other) in REFUSED
    assert make(pool=stolen.other) in REFUSED
    for part in ("driver", "pool", "device"):
        assert make(**{part: ""}) in REFUSED, part
    assert make(driver="", pool="", device="") in REFUSED
    for effect in ("NoSchedule", "NoExecute"):
        assert make(effect=effect) in REFUSED
    assert make(name="another") in REFUSED
    assert make(owner="") in REFUSED
    assert make() == 201
    path = f"{RULES}/gpu-health-agent.{stolen.node}.{DRIVER}.gpu-0"
    for effect, refused in (("NoExecute", True), ("NoSchedule", False)):
        status = stolen("PATCH", path, {"spec": {"taint": {"key": KEY, "effect": effect}}}, MERGE)
        assert (status in REFUSED) == refused, effect
    assert stolen("PATCH", path, {"metadata": {"ownerReferences": None}}, MERGE) in REFUSED
    for selector in ({"device": None}, {"pool": None}, {"driver": None}, None):
        assert stolen("PATCH", path, {"spec": {"deviceSelector": selector}}, MERGE) in REFUSED
    theirs = {"deviceSelector": {"driver": DRIVER}, "taint": {"key": KEY, "effect": "None"}}
    site.plane.must("POST", RULES, {"metadata": {"name": f"{site.name}-theirs"}, "spec": theirs})
    assert stolen("DELETE", f"{RULES}/{site.name}-theirs") in REFUSED
    site.plane.must("DELETE", f"{RULES}/{site.name}-theirs")
    site.plane.must("DELETE", f"/api/v1/nodes/{stolen.node}")
    site.plane.wait("the rule is gone", lambda: site.plane.request("GET", path)[0] == 404)
