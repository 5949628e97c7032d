"""Repair on a real API server: a drained node's remedy runs as a Job, is proved, and the node returns by itself."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.cluster.conftest import AgentProcess, Site, StartAgent
from tests.sources.kubelet.test_pod_resources import Kubelet, kubelet, listing

UNHEALTHY = "gpu-health-agent/unhealthy"
NAMESPACE = "gpu-health-agent"
__all__ = ["kubelet"]  # a fixture


def jobs(site: Site) -> list[dict[str, Any]]:
    found = site.plane.must("GET", f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs")["items"]
    return [job for job in found if job["spec"]["template"]["spec"].get("nodeName") == site.nodes[0]]


def drains(site: Site) -> bool:
    leases = site.plane.must("GET", f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases")["items"]
    draining = [lease["spec"] for lease in leases if "-draining-" in lease["metadata"]["name"]]
    return any(str(spec.get("holderIdentity")).startswith(f"{site.nodes[0]}/") for spec in draining)


def test_a_gpu_is_reset_by_a_job_proved_and_the_node_returns_by_itself(site: Site, agent: StartAgent) -> None:
    site.deploy("train", 1, pin=site.nodes[0])
    operand = {"metadata": {"labels": {"nvidia.com/gpu.deploy.dcgm": "true"}}}
    site.plane.must("PATCH", f"/api/v1/nodes/{site.nodes[0]}", operand, "application/merge-patch+json")
    running = agent(simulate="idle", repair={"reset_gpu": "gpu-reset", "pause_s": 1})
    site.plane.wait("healthy", lambda: running.state()["status"] == "healthy")
    running.inject("--gpu", "3", "--xid", "95")
    site.plane.wait("moved", lambda: site.running("train") == [site.nodes[1]])
    site.plane.wait("a Job", lambda: len(jobs(site)) == 1)
    (job,) = jobs(site)
    assert job["spec"]["backoffLimit"] == 0
    assert job["spec"]["template"]["metadata"]["annotations"]["gpu-health-agent/gpus"].startswith("GPU-")
    running.inject("--gpu", "3", "--clear")  # what the Job would have done
    site.plane.wait("returned", lambda: site.taints() == [] and running.state()["status"] == "healthy")
    site.plane.wait("labels", lambda: site.node()["metadata"]["labels"]["gpu-health-agent/state"] == "healthy")
    assert site.node()["metadata"]["labels"]["nvidia.com/gpu.deploy.dcgm"] == "true"
    assert "attempts" not in site.node()["metadata"]["annotations"]["gpu-health-agent/faults"]
    assert len(jobs(site)) == 1


def test_a_cured_node_returns_once_its_check_ended_well(site: Site, agent: StartAgent) -> None:
    # The policies let only the shipped templates through; a Job of any of them that ends well will do.
    running = agent(simulate="idle", repair={"reset_gpu": "gpu-reset", "check": "gpu-reset", "pause_s": 1})
    site.plane.wait("healthy", lambda: running.state()["status"] == "healthy")
    running.inject("--gpu", "3", "--xid", "95")
    site.plane.wait("a Job", lambda: len(jobs(site)) == 1)
    running.inject("--gpu", "3", "--clear")
    site.plane.wait("returned", lambda: site.taints() == [] and running.state()["status"] == "healthy")
    made = sorted(jobs(site), key=lambda job: str(job["metadata"]["creationTimestamp"]))
    assert [job["metadata"]["name"].rpartition("-")[0] for job in made] == ["gpu-health-reset-gpu", "gpu-health-check"]


def test_as_shipped_a_cured_node_is_held_with_its_permit_says_so_and_a_persons_word_ends_it(
    site: Site, agent: StartAgent
) -> None:
    running = agent(simulate="idle", repair={"reset_gpu": "gpu-reset", "pause_s": 1}, budget={"max_withdrawn": 2})
    site.plane.wait("healthy", lambda: running.state()["status"] == "healthy")
    running.inject("--gpu", "3", "--xid", "95")

    def told(what: str) -> bool:
        return any(what in why for why in running.state()["waits"])

    site.plane.wait("told ahead", lambda: told("once it is cured it stays out of service for 8 h more"))
    site.plane.wait("a Job", lambda: len(jobs(site)) == 1)
    running.inject("--gpu", "3", "--clear")
    site.plane.wait("held", lambda: told("cured, it stays out of service, with its permit, until "))
    time.sleep(3)  # its soak is a second
    assert site.taints() == [UNHEALTHY]
    command = [sys.executable, "-m", "agent", "explain", "--node", site.nodes[0], "--config", str(running.config)]
    asked = subprocess.run(
        [*command, "--kubeconfig", str(site.plane.kubeconfig)], capture_output=True, text=True, check=True
    )
    assert "annotation gpu-health-agent/dismiss=recurrence@node ends this at once" in asked.stdout
    site.plane.kubectl("annotate", "node", site.nodes[0], "gpu-health-agent/dismiss=recurrence@node")
    site.plane.wait("returned", lambda: site.taints() == [])


def test_the_shipped_template_takes_evidence_before_the_reset_and_the_history_names_its_job(
    site: Site, agent: StartAgent
) -> None:
    running = agent(simulate="idle", repair={"reset_gpu": "gpu-reset", "collect": "gpu-collect", "pause_s": 1})
    site.plane.wait("healthy", lambda: running.state()["status"] == "healthy")
    running.inject("--gpu", "3", "--xid", "95")
    site.plane.wait("both Jobs", lambda: len(jobs(site)) == 2)
    collect, reset = sorted(jobs(site), key=lambda job: "-reset-" in job["metadata"]["name"])
    assert collect["spec"]["activeDeadlineSeconds"] == 300
    assert collect["metadata"]["creationTimestamp"] <= reset["metadata"]["creationTimestamp"]
    running.inject("--gpu", "3", "--clear")
    site.plane.wait("returned", lambda: site.taints() == [] and running.state()["status"] == "healthy")
    site.plane.wait("an end", lambda: running.state()["incidents"][0]["ended_by"])
    assert running.state()["incidents"][0]["collected"] == collect["metadata"]["name"]


def test_killed_while_the_gpu_is_being_reset_it_repairs_once_and_returns(site: Site, agent: StartAgent) -> None:
    site.deploy("train", 1, pin=site.nodes[0])
    running = agent(simulate="idle", repair={"reset_gpu": "gpu-reset", "pause_s": 1})
    site.plane.wait("healthy", lambda: running.state()["status"] == "healthy")
    running.inject("--gpu", "3", "--xid", "95")
    site.plane.wait("reserved", lambda: "attempts" in site.node()["metadata"]["annotations"]["gpu-health-agent/faults"])
    # A life that ended under its draining permit may have asked for an eviction last, and the next waits five minutes.
    site.plane.wait("drained", lambda: not drains(site))
    running.kill()
    running.start()
    site.plane.wait("a Job", lambda: len(jobs(site)) == 1)
    running.inject("--gpu", "3", "--clear")
    site.plane.wait("returned", lambda: site.taints() == [] and running.state()["status"] == "healthy")
    assert len(jobs(site)) == 1


def test_a_template_that_is_missing_is_named_and_the_node_stays_withdrawn(site: Site, agent: StartAgent) -> None:
    running = agent(simulate="idle", repair={"reset_gpu": "nowhere"})
    site.plane.wait("healthy", lambda: running.state()["status"] == "healthy")
    running.inject("--gpu", "3", "--xid", "95")
    site.plane.wait("said", lambda: any('cronjobs.batch "nowhere" not found' in w for w in running.state()["waits"]))
    assert site.taints() == [UNHEALTHY]


def hold(site: Site, running: AgentProcess, played: Kubelet, **gpus: int) -> list[str]:
    """The kubelet says that each Deployment's pod holds the GPU of this index; the UUIDs of all GPUs."""
    uuids = [gpu["uuid"] for _, gpu in sorted(running.state()["gpus"].items())]
    holders = {
        pod["metadata"]["name"]: {"nvidia.com/gpu": [uuids[gpus[pod["metadata"]["labels"]["app"]]]]}
        for pod in site.plane.must("GET", f"/api/v1/namespaces/{site.name}/pods")["items"]
    }

    def answer() -> Any:
        made = listing(**{name: dict(resources) for name, resources in holders.items()})
        for pod in made.pod_resources:
            pod.namespace = site.name
        return made

    played.answer = answer
    return uuids


def test_pods_on_the_other_gpus_of_the_node_run_on(
    site: Site, agent: StartAgent, kubelet: tuple[Kubelet, Path]
) -> None:
    site.deploy("good", 1, pin=site.nodes[0])
    site.deploy("bad", 1, pin=site.nodes[0])
    played, socket = kubelet
    running = agent(simulate="idle", sources={"pods": {"socket": str(socket)}})
    running.wait_for_simulation()
    hold(site, running, played, bad=3, good=5)
    running.inject("--gpu", "3", "--xid", "95")
    site.plane.wait("drained", lambda: site.node()["metadata"]["labels"].get("gpu-health-agent/state") == "drained")
    assert (site.running("bad"), site.running("good")) == ([site.nodes[1]], [site.nodes[0]])


def test_a_degraded_gpu_is_reset_once_nobody_uses_it_through_a_kill_and_nobody_moves(
    site: Site, agent: StartAgent, kubelet: tuple[Kubelet, Path]
) -> None:
    site.deploy("good", 1, pin=site.nodes[0])
    played, socket = kubelet
    running = agent(
        simulate="idle",
        sources={"pods": {"socket": str(socket)}},
        budget={"max_withdrawn": 2},
        repair={"reset_gpu": "gpu-reset", "reset_when_idle": True, "pause_s": 1},
    )
    running.wait_for_simulation()
    uuids = hold(site, running, played, good=3)
    running.inject("--gpu", "3", "--xid", "63")
    (pod,) = (p["metadata"]["name"] for p in site.plane.must("GET", f"/api/v1/namespaces/{site.name}/pods")["items"])
    busy = f"its GPU is not reset yet: pod {site.name}/{pod} holds it"
    site.plane.wait("said", lambda: any(busy in why for why in running.state()["waits"]))
    assert site.taints() == ["gpu-health-agent/degraded"]
    assert running.state()["faults"][0]["next"].endswith("its GPU is reset once nobody uses it")
    hold(site, running, played, good=5)
    # A busy GPU is looked at once a minute.
    faults = "gpu-health-agent/faults"
    site.plane.wait("reserved", lambda: "attempts" in site.node()["metadata"]["annotations"][faults], 90)
    assert site.taints() == [UNHEALTHY]
    running.kill()
    running.start()
    site.plane.wait("a Job", lambda: len(jobs(site)) == 1)
    running.inject("--gpu", "3", "--clear")
    site.plane.wait("returned", lambda: site.taints() == [] and running.state()["status"] == "healthy")
    site.plane.wait("labels", lambda: site.node()["metadata"]["labels"]["gpu-health-agent/state"] == "healthy")
    (job,) = jobs(site)
    assert job["spec"]["template"]["metadata"]["annotations"]["gpu-health-agent/gpus"] == uuids[3]
    assert site.running("good") == [site.nodes[0]]


def test_gpus_that_are_linked_are_drained_and_reset_together_and_no_others(
    site: Site, agent: StartAgent, kubelet: tuple[Kubelet, Path], tmp_path: Path
) -> None:
    for name in ("bad", "linked", "apart"):
        site.deploy(name, 1, pin=site.nodes[0])
    (tmp_path / "linked.yaml").write_text("profile: v100-8\n")
    played, socket = kubelet
    running = agent(
        simulate=str(tmp_path / "linked.yaml"),
        sources={"pods": {"socket": str(socket)}},
        repair={"reset_gpu": "gpu-reset", "pause_s": 1},
    )
    running.wait_for_simulation()
    uuids = hold(site, running, played, bad=3, linked=0, apart=5)
    running.inject("--gpu", "3", "--xid", "95")
    site.plane.wait("a Job", lambda: len(jobs(site)) == 1)
    running.inject("--gpu", "3", "--clear")  # what the Job would have done
    named = jobs(site)[0]["spec"]["template"]["metadata"]["annotations"]["gpu-health-agent/gpus"].split(",")
    assert named == [uuids[3], *sorted(uuids[:3])]
    moved = [site.running(name) for name in ("bad", "linked", "apart")]
    assert moved == [[site.nodes[1]], [site.nodes[1]], [site.nodes[0]]]
    site.plane.wait("returned", lambda: site.taints() == [] and running.state()["status"] == "healthy")
