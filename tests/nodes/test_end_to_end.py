"""The whole way on real nodes: the image as a DaemonSet, a fault in its container, a pod that moves and comes back."""

from __future__ import annotations

import json
import shlex
import subprocess
import urllib.request
from typing import Any

import pytest

from agent.sources.kubelet.pod_resources import PodResources, command_line
from tests.documents import ON_CALL, shell_blocks
from tests.nodes.conftest import NAMESPACE, UUIDS, WANTS_NO_HOLD, Site, serves
from tests.recording.decided import decided_anew

HELD = "cured, it stays out of service, with its permit, until "
HARD = "gpu-health-agent/unhealthy"


def index(site: Site, pod: dict[str, Any]) -> str:
    """Which GPU a pod holds, as the real kubelet tells."""
    node = site.rig.nodes[pod["spec"]["nodeName"]]
    held = PodResources(command_line(node.pod_resources)).who_holds()[f"{site.name}/{pod['metadata']['name']}"]
    assert held
    (uuid,) = held
    return str(UUIDS.index(uuid))


def test_only_the_pod_on_the_bad_gpu_moves_with_its_work_saved_and_a_reset_returns_the_node(site: Site) -> None:
    """From the fault to a healthy node with no person, but for the one who wants it back at once."""
    hangs = site.rig.shared / "simulation" / "n1" / "hangs"
    hangs.touch()  # what takes evidence
    earlier = {kind: names(site.jobs(kind)) for kind in ("collect", "reset-gpu")}
    site.plane.kubectl("annotate", "node", "n1", f"{WANTS_NO_HOLD.partition('=')[0]}-")  # a hold is to be seen
    site.deploy("train", "n1")
    site.deploy("other", "n1")
    site.deploy("web", "n1", gpus=0)
    stay = {app: site.pod(app)["metadata"]["uid"] for app in ("other", "web")}
    bad = index(site, site.pod("train"))
    assert bad != index(site, site.pod("other"))

    site.inject("n1", "--gpu", bad, "--xid", "95")
    site.plane.wait("taint", lambda: site.taints("n1") == [HARD])
    site.plane.wait("the replacement runs on another node", lambda: site.where("train") == ["n2"])
    site.plane.wait("the work was saved in its grace period", lambda: site.saved("train").exists())
    node = site.plane.must("GET", "/api/v1/nodes/n1")
    assert node["metadata"]["labels"]["node.kubernetes.io/gpu-error"] == "true"
    assert [c["status"] for c in node["status"]["conditions"] if c["type"] == "GpuUnhealthy"] == ["True"]
    assert site.taints("n2") == []

    site.plane.wait("the node is held", lambda: any(HELD in why for why in site.state("n1")["waits"]), 180)
    hangs.unlink()
    (evidence,) = (job for job in site.jobs("collect") if job["metadata"]["name"] not in earlier["collect"])
    assert [c["reason"] for c in evidence["status"]["conditions"] if c["type"] == "Failed"] == ["DeadlineExceeded"]
    (job,) = (job for job in site.jobs("reset-gpu") if job["metadata"]["name"] not in earlier["reset-gpu"])
    assert evidence["metadata"]["creationTimestamp"] <= job["metadata"]["creationTimestamp"]
    assert site.taints("n1") == [HARD]
    decided = decided_anew(frozen(site, "n1"))
    assert any(fault["id"].startswith("xid-95@") for one in decided for fault in one["faults"])
    site.plane.kubectl("annotate", "node", "n1", WANTS_NO_HOLD)
    site.plane.wait("the node is back", lambda: site.taints("n1") == [], 30)
    assert site.state("n1")["incidents"][0]["collected"] == evidence["metadata"]["name"]
    pod = job["spec"]["template"]
    assert (pod["spec"]["nodeName"], job["status"]["succeeded"]) == ("n1", 1)
    assert pod["metadata"]["annotations"]["gpu-health-agent/gpus"] == UUIDS[int(bad)]
    site.plane.wait("and healthy", lambda: site.state("n1")["status"] == "healthy")
    site.deploy("next", "n1")
    assert {app: site.pod(app)["metadata"]["uid"] for app in stay} == stay, "the other pods were left alone"


def names(jobs: list[dict[str, Any]]) -> set[str]:
    return {job["metadata"]["name"] for job in jobs}


def frozen(site: Site, node: str) -> bytes:
    """The archive of what the agent there saw and decided until now, as a person takes it."""
    pod = site.agent(node)["metadata"]["name"]
    command = ("exec", f"--namespace={NAMESPACE}", pod, "--container=agent", "--", "gpu-health-agent", "evidence")
    return subprocess.run(site.plane.command(*command, "--freeze"), check=True, capture_output=True).stdout


def test_evidence_that_fails_keeps_no_gpu_from_its_reset(site: Site) -> None:
    before = {kind: len(site.jobs(kind)) for kind in ("collect", "reset-gpu")}
    site.inject("n1", "--gpu", "7", "--xid", "95")
    site.plane.wait("a reset", lambda: len(site.jobs("reset-gpu")) > before["reset-gpu"], 180)
    site.plane.wait("the node is back", lambda: site.taints("n1") == [], 180)
    assert len(site.jobs("collect")) == before["collect"] + 1
    assert not any(job["status"].get("succeeded") for job in site.jobs("collect"))


def test_a_job_that_forgives_disruptions_goes_on_elsewhere(site: Site) -> None:
    """The kubelet reports that its pod failed, by the signal, and keeps the condition that says why."""
    site.start_job("train", "n1")
    site.inject("n1", "--gpu", index(site, site.pod("train")), "--xid", "95")
    site.plane.wait("it runs on another node", lambda: site.where("train") == ["n2"], 180)
    job = site.plane.must("GET", f"/apis/batch/v1/namespaces/{site.name}/jobs/train")["status"]
    assert (job.get("failed", 0), job.get("conditions", [])) == (0, [])


def test_a_paged_person_sees_what_stands_and_can_stop_all_agents_by_the_readmes_commands(site: Site) -> None:
    ((which, explain, page, pause),) = shell_blocks(ON_CALL, "What to do about an alert")
    pod = site.agent("n2")["metadata"]["name"]

    def arguments(line: str) -> list[str]:
        return shlex.split(line.replace("NODE", "n2").replace("POD", pod))[1:]

    site.plane.kubectl(*arguments(pause))
    site.inject("n2", "--gpu", "3", "--xid", "95")
    site.plane.wait("it is paused", lambda: any("paused" in why for why in site.state("n2")["waits"]), 120)
    assert site.taints("n2") == []
    assert pod in site.plane.kubectl(*arguments(which))
    assert "xid-95" in site.plane.kubectl(*arguments(explain))
    with subprocess.Popen(site.plane.command(*arguments(page)), stdout=subprocess.PIPE, text=True) as forwarding:
        assert forwarding.stdout is not None
        assert "Forwarding" in forwarding.stdout.readline()
        with urllib.request.urlopen("http://localhost:9836/", timeout=30) as answer:
            shown = answer.read().decode()
        forwarding.terminate()
    assert "n2" in shown
    assert "xid-95" in shown
    site.plane.kubectl("-n", NAMESPACE, "delete", "configmap", "gpu-health-agent-pause")
    site.plane.wait("it goes on", lambda: site.taints("n2") == [HARD], 120)
    site.inject("n2", "--clear")
    site.plane.wait("the node is back", lambda: site.taints("n2") == [] and serves(site.rig, "n2"), 120)


def test_the_log_is_json_the_probes_pass_and_nothing_was_restarted(site: Site) -> None:
    for node in site.rig.nodes:
        pod = site.agent(node)
        for status in pod["status"]["containerStatuses"]:
            assert (status["ready"], status["restartCount"]) == (True, 0), status["name"]
        lines = site.plane.kubectl("logs", f"--namespace={NAMESPACE}", pod["metadata"]["name"], "--container=agent")
        assert "started" in [json.loads(line)["event"] for line in lines.splitlines()]
        assert "gpu_health_" in site.get(node, "/metrics")
        assert site.get(node, "/healthz")


def test_no_proxy_stands_between_the_agent_and_the_api_server(site: Site) -> None:
    """The kubelet puts the address in for its name."""
    asked, address = site.shell("n1", "agent", "printenv", "NO_PROXY", "KUBERNETES_SERVICE_HOST").split()
    assert asked == address


def test_no_container_holds_both_the_credential_and_the_hosts_privileges(site: Site) -> None:
    """What each of them finds of itself, by the kernel's word."""
    look = """
import json, os
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
def writes(path):
    try:
        open(path, "w").close()
    except OSError:
        return False
    os.unlink(path)
    return True
print(json.dumps({
    "root": os.getuid() == 0, "capabilities": int(status["CapEff"], 16) != 0,
    "may gain some": status["NoNewPrivs"].strip() == "0", "seccomp": status["Seccomp"].strip() == "2",
    "token": os.path.exists("/var/run/secrets/kubernetes.io/serviceaccount/token"),
    "kernel log": os.path.exists("/dev/kmsg") and os.access("/dev/kmsg", os.R_OK), "writes /": writes("/x")}))
"""

    def found(container: str) -> dict[str, bool]:
        return dict(json.loads(site.shell("n1", container, "/opt/gpu-health-agent/bin/python", "-c", look)))

    assert found("agent") == {
        "root": False,
        "capabilities": False,
        "may gain some": False,
        "seccomp": True,
        "token": True,
        "kernel log": False,
        "writes /": False,
    }
    sources = found("sources")
    assert (sources["root"], sources["capabilities"], sources["kernel log"]) == (True, True, True)
    assert (sources["token"], sources["writes /"]) == (False, False)


def test_each_container_has_its_memory_limit_and_stays_far_below_it(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    """Version 1 and version 2 of cgroups name the files differently; in the latter a privileged container sees all."""
    read = """cd /sys/fs/cgroup
if [ -d memory ]; then cat memory/memory.limit_in_bytes; grep '^total_rss ' memory/memory.stat
else cd "./$(sed -n 's/^0:://p' /proc/self/cgroup)"; cat memory.max; grep '^anon ' memory.stat; fi"""
    for container in ("agent", "sources"):
        limit, _, used = site.shell("n1", container, "sh", "-c", read).split()
        assert int(limit) == 192 * 2**20
        with capsys.disabled():
            print(f"\n{container}: {int(used) / 2**20:.0f} MiB of anonymous memory")
        assert int(used) < int(limit) / 2


def test_an_agent_that_hangs_is_started_anew_and_its_sources_go_on(site: Site) -> None:
    pid = site.pid(site.agent("n2"), "run")
    site.rig.nodes["n2"].run("kill", "-STOP", str(pid))
    site.plane.wait(
        "the liveness probe ends it", lambda: _restarts(site, "n2") == {"agent": 1, "sources": 0, "door": 0}, 300
    )
    site.plane.wait("it is ready again", lambda: serves(site.rig, "n2"), 120)
    site.plane.wait("and sees its GPUs", lambda: site.state("n2")["status"] == "healthy")


def _restarts(site: Site, node: str) -> dict[str, int]:
    return {status["name"]: status["restartCount"] for status in site.agent(node)["status"]["containerStatuses"]}
