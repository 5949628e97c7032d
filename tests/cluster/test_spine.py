"""The main job on a real API server: a fault becomes condition, label, taint and eviction, and goes again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.cluster.conftest import Site, StartAgent
from tests.running import environment

XID_79 = "NVRM: Xid (PCI:0000:1b:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus."
UNHEALTHY = "gpu-health-agent/unhealthy"


def test_a_fatal_xid_in_the_kernel_log_moves_the_pods_to_another_node(site: Site, agent: StartAgent) -> None:
    site.deploy("train", 1, pin=site.nodes[0])
    site.deploy("web", 1, gpus=0, pin=site.nodes[0])
    running = agent()
    site.plane.wait("healthy", lambda: running.state()["status"] == "healthy")
    running.kernel(XID_79)
    site.plane.wait("taint", lambda: site.taints() == [UNHEALTHY])
    site.plane.wait("condition", lambda: site.condition("GpuUnhealthy")["status"] == "True")
    assert site.condition("GpuUnhealthy")["reason"] == "Xid79"
    assert site.node()["metadata"]["labels"]["node.kubernetes.io/gpu-error"] == "true"
    site.plane.wait("pods run elsewhere", lambda: site.running("train") + site.running("web") == [site.nodes[1]] * 2)
    site.plane.wait("drained", lambda: site.node()["metadata"]["labels"]["gpu-health-agent/state"] == "drained")
    labels = f'gpu="",node="{site.nodes[0]}",pci_bus_id="0000:1b:00.0",uuid="",xid="79"'
    assert f"gpu_health_xid_total{{{labels}}} 1.0" in running.get("/metrics")
    reasons = {
        e["reason"]
        for e in site.plane.must("GET", "/api/v1/namespaces/default/events")["items"]
        if e["involvedObject"]["name"] == site.nodes[0] and e["source"]["component"] == "gpu-health-agent"
    }
    assert reasons == {"Xid79", "Withdrawn"}


def test_a_pod_that_its_budget_protects_waits_and_the_agent_says_so(site: Site, agent: StartAgent) -> None:
    site.deploy("serve", 2, pin=site.nodes[0])
    assert site.running("serve") == [site.nodes[0]] * 2
    site.budget("serve", 2)
    running = agent()
    site.plane.wait("healthy", lambda: running.state()["status"] == "healthy")
    running.kernel(XID_79)
    site.plane.wait("taint", lambda: site.taints() == [UNHEALTHY])
    site.plane.wait("said", lambda: any("disruption budget" in why for why in running.state()["waits"]))
    assert site.running("serve") == [site.nodes[0]] * 2
    site.plane.must("DELETE", f"/apis/policy/v1/namespaces/{site.name}/poddisruptionbudgets/serve")
    site.plane.wait("moved", lambda: site.running("serve") == [site.nodes[1]] * 2)


def test_a_job_that_forgives_disruptions_goes_on_elsewhere_after_an_eviction(site: Site, agent: StartAgent) -> None:
    site.start_job("train", pin=site.nodes[0])
    running = agent()
    site.plane.wait("healthy", lambda: running.state()["status"] == "healthy")
    running.kernel(XID_79)
    site.plane.wait("it runs elsewhere", lambda: site.running("train") == [site.nodes[1]])
    assert (site.job("train").get("failed", 0), site.job("train").get("conditions", [])) == (0, [])


def test_application_xids_never_taint(site: Site, agent: StartAgent) -> None:
    running = agent()
    site.plane.wait("healthy", lambda: running.state()["status"] == "healthy")
    for _ in range(100):
        for code in (13, 31, 43, 45):
            running.kernel(f"NVRM: Xid (PCI:0000:1b:00): {code}, pid=4711, name=python, Ch 00000008")
    site.plane.wait("all counted", lambda: sum(x["count"] for x in running.state()["xids"]) == 400)
    site.plane.wait("it is told", lambda: site.condition("GpuUnhealthy")["status"] == "False")
    assert site.taints() == []
    assert running.state()["status"] == "healthy"


def test_anothers_taint_survives_and_the_cured_node_is_clean(site: Site, agent: StartAgent) -> None:
    site.deploy("train", 1, pin=site.nodes[0])
    running = agent(simulate="idle")
    site.plane.wait("healthy", lambda: running.state()["status"] == "healthy")
    running.inject("--gpu", "3", "--xid", "95")
    site.plane.wait("taint", lambda: site.taints() == [UNHEALTHY])
    foreign = {"key": "example.com/theirs", "effect": "NoSchedule"}
    taints = [*site.node()["spec"]["taints"], foreign]
    path = f"/api/v1/nodes/{site.nodes[0]}"
    site.plane.must("PATCH", path, {"spec": {"taints": taints}}, "application/merge-patch+json")
    site.plane.wait("moved", lambda: site.running("train") == [site.nodes[1]])
    running.inject("--gpu", "3", "--clear")
    site.plane.wait("untainted", lambda: site.taints() == ["example.com/theirs"])
    site.plane.wait("permits given back", lambda: _holders(site) == {""})
    labels = site.node()["metadata"]["labels"]
    assert "node.kubernetes.io/gpu-error" not in labels
    assert labels["gpu-health-agent/state"] == "healthy"
    assert site.condition("GpuUnhealthy")["status"] == "False"


def test_a_lost_gpu_withdraws_and_returns_after_its_reboot(site: Site, agent: StartAgent) -> None:
    site.deploy("train", 1, pin=site.nodes[0])
    running = agent(simulate="idle")
    site.plane.wait("healthy", lambda: running.state()["status"] == "healthy")
    running.inject("--gpu", "5", "--lost")
    site.plane.wait("moved", lambda: site.running("train") == [site.nodes[1]])
    assert "gpu-lost" in [f["id"].partition("@")[0] for f in running.state()["faults"]]
    running.inject("--gpu", "5", "--clear")
    site.plane.wait("clean", lambda: site.taints() == [] and running.state()["status"] == "healthy")


def test_killed_and_restarted_it_replays_nothing_and_forgets_nothing(site: Site, agent: StartAgent) -> None:
    running = agent(mode="taint")
    site.plane.wait("healthy", lambda: running.state()["status"] == "healthy")
    running.kernel(XID_79)
    site.plane.wait("taint", lambda: site.taints() == [UNHEALTHY])
    running.kill()
    running.kernel("NVRM: Xid (PCI:0000:43:00): 95, pid=77, name=python, Uncontained: LTC TAG")
    running.start()
    site.plane.wait(
        "both stand",
        lambda: {f["id"] for f in running.state()["faults"]} == {"xid-79@0000:1b:00.0", "xid-95@0000:43:00.0"},
    )
    assert [x["code"] for x in running.state()["xids"]] == [95], "the one before the restart is not counted again"
    assert site.taints() == [UNHEALTHY]


def test_records_from_before_the_first_start_withdraw_nothing(site: Site, agent: StartAgent) -> None:
    running = agent()
    running.stop()
    path = f"/api/v1/nodes/{site.nodes[0]}"
    forget = {"metadata": {"annotations": {"gpu-health-agent/faults": None}}}
    site.plane.must("PATCH", path, forget, "application/merge-patch+json")
    running.kernel(XID_79)
    running.start()
    site.plane.wait("healthy", lambda: running.state()["status"] == "healthy")
    assert (running.state()["xids"], site.taints()) == ([], [])


def test_the_story_can_be_told_on_a_real_cluster(site: Site, tmp_path: Path) -> None:
    site.deploy("train", 1, pin=site.nodes[0])
    story = tmp_path / "story.yaml"
    story.write_text("""
profile: h100-8
duration_s: 20
steps: [{at_s: 1, gpu: 3, xid: 95}, {at_s: 6, gpu: 3, clear: true}]
expect: {faults: [xid-95], steps: {taint: 1, evict: 9, untaint: 1}, status: healthy}
""")
    command = [
        sys.executable,
        "-m",
        "agent",
        "simulate",
        str(story),
        "--kubeconfig",
        str(site.plane.kubeconfig),
        "--node",
        site.nodes[0],
        "--simulation-dir",
        str(tmp_path / "simulation"),
    ]
    told = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=60)
    assert told.returncode == 0, told.stdout + told.stderr
    assert site.running("train") == [site.nodes[1]]
    assert site.taints() == []


def _holders(site: Site) -> set[str]:
    path = "/apis/coordination.k8s.io/v1/namespaces/gpu-health-agent/leases"
    leases = site.plane.must("GET", f"{path}?labelSelector=gpu-health-agent%2Fpool%3D{site.pool}")["items"]
    return {lease["spec"]["holderIdentity"] for lease in leases}


def test_a_persons_word_ends_a_fault_and_a_new_event_is_news_even_so(site: Site, agent: StartAgent) -> None:
    running = agent()
    site.plane.wait("healthy", lambda: running.state()["status"] == "healthy")
    running.kernel(XID_79)
    site.plane.wait("taint", lambda: site.taints() == [UNHEALTHY])
    site.plane.kubectl("annotate", "node", site.nodes[0], "gpu-health-agent/dismiss=xid-79@0000:1b:00.0")
    site.plane.wait("untaint", lambda: site.taints() == [])
    site.plane.wait("healthy again", lambda: running.state()["status"] == "healthy")
    running.kernel(XID_79)
    site.plane.wait("taint again", lambda: site.taints() == [UNHEALTHY])


def test_a_degraded_node_that_is_to_get_no_new_pod_holds_a_permit_for_it(site: Site, agent: StartAgent) -> None:
    site.deploy("train", 1, pin=site.nodes[0])
    running = agent(simulate="idle", policy={"degraded_effect": "NoSchedule"}, budget={"max_withdrawn": 2})
    site.plane.wait("healthy", lambda: running.state()["status"] == "healthy")
    running.inject("--gpu", "3", "--xid", "171")
    firm = [{"key": "gpu-health-agent/degraded", "effect": "NoSchedule"}]
    site.plane.wait("tainted", lambda: site.node()["spec"].get("taints") == firm)
    lease = f"/apis/coordination.k8s.io/v1/namespaces/gpu-health-agent/leases/gpu-health-agent-withdrawn-{site.pool}-0"
    assert site.plane.must("GET", lease)["spec"]["holderIdentity"].startswith(f"{site.nodes[0]}/")
    assert site.running("train") == [site.nodes[0]]
    site.plane.wait("said", lambda: "no new ones come" in running.state()["faults"][0]["next"])
