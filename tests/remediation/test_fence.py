"""Where DRA offers the GPUs, one GPU is fenced and its node's others stay in service; whoever is killed leaves none."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import pytest

from agent.actions.fences import RULES
from agent.actions.removal import release
from agent.config.settings import Config, Mode
from agent.model.names import HARD_TAINT, NODE_UID_LABEL, WITHDRAWN_LABEL
from agent.model.neighbours import Preset
from agent.simulation.in_memory_cluster import InMemoryCluster
from tests.life import CONFIG, OPERANDS, Life, lives
from tests.observe import GPU, OTHER

DRIVER = "gpu.nvidia.com"
DRA = CONFIG.model_copy(update={"presets": (Preset.DRA,)})
MERGE = "application/merge-patch+json"
KEPT = {"gpu-health-agent/do-not-evict": "true"}
RULE = f"gpu-health-agent.n1.{DRIVER}.gpu-0"


def published(pool: str = "n1", gpus: Collection[str] = (GPU, OTHER), addresses: bool = True) -> dict[str, Any]:
    """The node's two GPUs, and a MIG instance on the second, as NVIDIA's driver publishes them."""
    whole = {"gpu-0": (GPU, {"uuid": f"GPU-{GPU}"}), "gpu-1": (OTHER, {"uuid": f"GPU-{OTHER}"})}
    named = {**whole, "gpu-1-mig-1g": (OTHER, {"uuid": "MIG-1", "parentUUID": f"GPU-{OTHER}"})}
    devices = []
    for name, (pci, ids) in named.items():
        told = {**ids, **({"resource.kubernetes.io/pciBusID": pci} if addresses else {})}
        if pci in gpus:
            devices.append({"name": name, "attributes": {key: {"string": value} for key, value in told.items()}})
    spec = {"driver": DRIVER, "nodeName": "n1", "pool": {"name": pool, "generation": 1}, "devices": devices}
    return {"metadata": {"name": "n1-gpus"}, "spec": spec}


def claimed(cluster: InMemoryCluster, pod: str, device: str, node: str = "n1") -> None:
    """A pod of a Job with a claim for this device."""
    cluster.add_pod("research", pod, node, gpus=0, owner="Job")
    asks = {"spec": {"resourceClaims": [{"name": "gpu", "resourceClaimName": f"{pod}-gpu"}]}}
    cluster("PATCH", f"/api/v1/namespaces/research/pods/{pod}", asks, MERGE)
    given = {"devices": {"results": [{"request": "gpu", "driver": DRIVER, "pool": node, "device": device}]}}
    claim = {"metadata": {"name": f"{pod}-gpu", "namespace": "research"}, "spec": {}, "status": {"allocation": given}}
    cluster._store("resourceclaims", "research", claim)


@dataclass
class Fenced(Life):
    """A life on a node whose GPUs are offered by DRA, with a pod on each. Checked at each round: nothing is fenced
    without permit and taint, and no pod leaves a GPU that is not fenced."""

    config: Config = DRA
    pool: str = "n1"
    addresses: bool = True

    def _settles(self) -> None:
        super()._settles()
        del self.cluster._objects["pods", "research", "train"]
        claimed(self.cluster, "bad", "gpu-0")
        claimed(self.cluster, "good", "gpu-1-mig-1g")
        self.cluster._store("resourceslices", "", published(self.pool, addresses=self.addresses))

    def rules(self) -> dict[str, str]:
        """Name → effect."""
        return {r["metadata"]["name"]: r["spec"]["taint"]["effect"] for r in self.cluster("GET", RULES)[1]["items"]}

    def effect(self) -> str:
        """Of our hard taint."""
        taints = self.node()["spec"].get("taints") or ()
        return next((str(t["effect"]) for t in taints if t["key"] == HARD_TAINT), "")

    def _permitted(self) -> None:
        super()._permitted()
        closed = "NoSchedule" in self.rules().values()
        assert not closed or self.effect(), "a fence without our taint"
        assert not self.cluster.evicted or closed or self.effect() != "PreferNoSchedule" or self.ended, "nobody fenced"


def test_one_gpu_is_fenced_its_pod_leaves_and_the_others_stay_in_service() -> None:
    life = Fenced(95)
    life.tick()
    assert (life.effect(), life.rules()) == ("PreferNoSchedule", {RULE: "None"})
    life.run(20)
    assert life.rules() == {RULE: "NoSchedule"}
    life.run(200, rests=True)
    assert life.cluster.evicted == ["research/bad"]
    assert (life.repairs, life.reset) == (["reset_gpu"], [f"GPU-{GPU}"])
    assert (life.effect(), life.rules(), any(life.holders())) == ("", {}, False)


def test_wherever_it_is_killed_one_repair_is_made_and_no_fence_is_left() -> None:
    for life in lives(Fenced(95), 400, killed=lambda writes: len(writes) == 1):
        assert isinstance(life, Fenced)
        assert (life.repairs, life.cluster.evicted) == (["reset_gpu"], ["research/bad"]), life.kills
        assert (life.effect(), life.rules(), any(life.holders())) == ("", {}, False), life.kills


@pytest.mark.parametrize("addresses", [True, False])
def test_gpus_that_are_reset_together_are_fenced_together_with_every_part_of_them(addresses: bool) -> None:
    life = Fenced(95, linked=True, addresses=addresses)
    life.run(30)
    assert {*life.rules().values()} == {"NoSchedule"}
    assert [name.rpartition(".")[2] for name in life.rules()] == ["gpu-0", "gpu-1", "gpu-1-mig-1g"]


def test_without_a_permit_nothing_is_fenced_and_only_mode_observe_tries() -> None:
    life = Fenced(95, DRA.model_copy(update={"budget": DRA.budget.model_copy(update={"max_withdrawn": 0})}))
    life.run(100)
    assert (life.effect(), life.rules()) == ("", {})
    life = Fenced(95, DRA.model_copy(update={"mode": Mode.OBSERVE}))
    life.run(100)
    assert (life.effect(), life.rules(), life.cluster.evicted) == ("", {RULE: "None"}, [])
    life.cluster("PATCH", "/api/v1/nodes/n1", {"metadata": {"annotations": dismissed()}}, MERGE)
    life.run(100)
    assert life.rules() == {}


def dismissed() -> dict[str, str]:
    return {"gpu-health-agent/dismiss": f"xid-95@{GPU} recovery-action@{GPU}"}


def test_what_an_eviction_would_hit_is_told_while_the_fence_stands() -> None:
    life = Fenced(95)
    life.tick()
    told = "1 pod would be evicted in 1 namespace if the effect was NoExecute. This information will not be updated."
    status = {"status": {"conditions": [{"type": "EvictionInProgress", "status": "False", "message": told}]}}
    life.cluster("PATCH", f"{RULES}/{RULE}", status, MERGE)
    life.run(20)
    (fence,) = life.world.fences
    assert fence.closed
    assert fence.words.endswith("1 pod would be evicted in 1 namespace if the effect was NoExecute.")


@pytest.mark.parametrize(
    ("pool", "status", "why"),
    [
        ("gpus-of-n1", 0, "no device of a pool of the node's name"),
        ("n1", 404, "it serves no DeviceTaintRule"),
        ("n1", 403, "forbidden"),
        ("n1", 422, "forbidden"),
    ],
)
def test_where_no_gpu_can_be_fenced_the_whole_node_is_tainted_and_that_is_told(
    pool: str, status: int, why: str
) -> None:
    life = Fenced(95, pool=pool)

    def refusing(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        listed = status in (403, 404)
        if status and path.startswith(RULES) and method == ("GET" if listed else "POST"):
            return status, {"message": "forbidden"}
        return life.cluster(method, path, *rest, **more)

    life.api = refusing
    life.run(30)
    assert (life.effect(), life.rules()) == ("NoSchedule", {})
    assert any("the whole node is tainted" in one and why in one for one in life.waits)
    life.api = None
    life.run(300, rests=True)
    assert (life.effect(), life.repairs) == ("", ["reset_gpu"])


def test_a_harder_remedy_taints_the_node_before_the_fence_is_lifted() -> None:
    life = Fenced(95, cures=lambda remedy: remedy == "reboot_node")
    seen: list[tuple[str, dict[str, str]]] = []
    for _ in range(60):
        life.tick()
        seen.append((life.effect(), life.rules()))
    assert life.repairs[-1] == "reboot_node"
    order = [one for one, before in zip(seen, [("", {}), *seen], strict=False) if one != before]
    fenced = order.index(("PreferNoSchedule", {RULE: "NoSchedule"}))
    assert order[fenced + 1] in (("NoSchedule", {RULE: "NoSchedule"}), ("NoSchedule", {}))
    assert order[-1] == ("", {})


def test_a_fence_holds_while_its_driver_is_away_for_the_reset() -> None:
    life = Fenced(95)
    life.run(20)
    life.cluster._objects.pop(("resourceslices", "", "n1-gpus"))
    life.run(40)
    assert (life.effect(), life.rules()) == ("PreferNoSchedule", {RULE: "NoSchedule"})


def test_others_rules_stay_and_ours_go_with_release_alone() -> None:
    life = Fenced(95)
    ours = {"deviceSelector": {"driver": DRIVER, "pool": "n1", "device": "gpu-1"}}
    other = {"metadata": {"name": "a-persons"}, "spec": {**ours, "taint": {"key": "team/broken", "effect": "None"}}}
    life.cluster("POST", RULES, other)
    life.run(20)
    assert life.rules() == {RULE: "NoSchedule", "a-persons": "None"}
    assert any("fence of device gpu-0" in one for one in release(life.cluster, "gpu-health-agent", "n1"))
    assert life.rules() == {"a-persons": "None"}


def test_an_incident_that_began_with_a_fence_ends_so_though_the_preset_is_switched_off() -> None:
    life = Fenced(95)
    life.run(20)
    life.config = CONFIG
    life._begin()
    life.run(200, rests=True)
    assert (life.repairs, life.cluster.evicted) == (["reset_gpu"], ["research/bad"])
    assert (life.effect(), life.rules(), any(life.holders())) == ("", {}, False)


def test_a_fenced_node_counts_as_withdrawn_and_nobody_is_told_to_take_it_out() -> None:
    life = Fenced(95, DRA.model_copy(update={"presets": (Preset.DRA, Preset.CLUSTER_AUTOSCALER, Preset.SLINKY)}))
    life.run(20)
    node = life.node()
    assert [(taint["key"], taint["effect"]) for taint in node["spec"]["taints"]] == [(HARD_TAINT, "PreferNoSchedule")]
    assert node["metadata"]["labels"][WITHDRAWN_LABEL] == "true"
    assert "unschedulable" not in node["spec"]
    said = [event["message"] for (kind, *_), event in life.cluster._objects.items() if kind == "events"]
    assert any(one.startswith("new pods come to its other GPUs only: reset_gpu") for one in said)


def test_a_pod_that_comes_to_another_gpu_of_the_node_did_not_come_back() -> None:
    life = Fenced(95)
    life.cluster("PATCH", "/api/v1/namespaces/research/pods/bad", {"metadata": {"annotations": KEPT}}, MERGE)
    life.run(30)
    for number in range(3):
        claimed(life.cluster, f"new-{number}", "gpu-1")
        life.run(10)
    assert life.world.returns == {}
    claimed(life.cluster, "tolerates", "gpu-0")
    life.run(10)
    assert life.world.returns == {"research/Job/tolerates": 1}


def test_a_drivers_own_taint_is_told_and_left() -> None:
    life = Fenced(0)
    slices = published()
    slices["spec"]["devices"][0]["taints"] = [{"key": "gpu.nvidia.com/xid", "value": "79", "effect": "NoSchedule"}]
    life.cluster._store("resourceslices", "", slices)
    life.run(700)
    assert [why for why in life.waits if "gpu.nvidia.com/xid=79:NoSchedule keeps new pods off" in why]
    assert (life.effect(), life.rules()) == ("", {})


def test_a_rule_goes_with_its_node_and_names_driver_pool_and_device() -> None:
    life = Fenced(95)
    life.tick()
    rule = life.cluster.read("devicetaintrules", RULE)
    assert rule["metadata"]["ownerReferences"] == [
        {"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": life.node()["metadata"]["uid"]}
    ]
    assert rule["spec"]["deviceSelector"] == {"driver": DRIVER, "pool": "n1", "device": "gpu-0"}
    assert rule["metadata"]["labels"][NODE_UID_LABEL] == life.node()["metadata"]["uid"]


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("effect", ["None", "NoSchedule", "NoExecute"])
def test_a_fence_of_a_node_object_that_is_gone_is_taken_off_and_set_anew(effect: str, restarts: bool) -> None:
    """It would be collected one day. Until then its name is taken: each round would meet a conflict."""
    life = Fenced(95)
    life.cluster("PATCH", "/api/v1/namespaces/research/pods/bad", {"metadata": {"annotations": KEPT}}, MERGE)
    life.run(20)
    old = life.cluster.read("devicetaintrules", RULE)["metadata"]["uid"]
    life.cluster("PATCH", f"{RULES}/{RULE}", {"spec": {"taint": {"effect": effect}}}, MERGE)
    for gone in (("nodes", "", "n1"), ("pods", "research", "bad"), ("pods", "research", "good")):
        del life.cluster._objects[gone]
    life.cluster.add_node("n1")
    life.cluster("PATCH", "/api/v1/nodes/n1", {"metadata": {"labels": OPERANDS}}, MERGE)
    claimed(life.cluster, "beside", "gpu-0")
    if restarts:
        life._begin()
    life.run(60)
    assert life.rules() == {RULE: "NoSchedule"}
    assert life.cluster.read("devicetaintrules", RULE)["metadata"]["uid"] != old
    life.run(500, rests=True)
    assert (life.effect(), life.rules(), any(life.holders())) == ("", {}, False)


def test_where_anothers_rule_has_the_name_of_a_fence_the_whole_node_is_tainted_and_that_is_told() -> None:
    life = Fenced(95)
    ours = {"deviceSelector": {"driver": DRIVER, "pool": "n1", "device": "gpu-0"}}
    life.cluster(
        "POST", RULES, {"metadata": {"name": RULE}, "spec": {**ours, "taint": {"key": "a/b", "effect": "None"}}}
    )
    life.run(20)
    assert (life.effect(), life.rules()) == ("NoSchedule", {RULE: "None"})
    assert any(why.startswith("the whole node is tainted, and not one GPU fenced: a rule for ") for why in life.waits)
