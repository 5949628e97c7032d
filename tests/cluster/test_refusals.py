"""What the agent says and does when the cluster refuses, is gone, or was never there."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from agent.actions.api import connect
from agent.actions.kube import KubeClient
from agent.config.settings import Config
from agent.model.errors import RefusedError
from agent.model.names import SOFT_TAINT
from agent.model.steps import Retaint
from agent.model.world import Taint
from tests.cluster.conftest import Site, StartAgent
from tests.cluster.test_spine import UNHEALTHY, XID_79
from tests.running import environment


def test_a_node_that_does_not_exist_is_said_and_waited_for(site: Site, agent: StartAgent) -> None:
    site.nodes = ("nonesuch", site.nodes[1])
    pod = {
        "metadata": {"name": "early", "labels": {"app.kubernetes.io/name": "gpu-health-agent"}},
        "spec": {
            "serviceAccountName": "gpu-health-agent",
            "nodeName": "nonesuch",
            "tolerations": [{"operator": "Exists"}],
            "containers": [{"name": "main", "image": "none"}],
        },
    }
    site.plane.must("POST", "/api/v1/namespaces/gpu-health-agent/pods", pod)
    running = agent()
    site.plane.wait("said", lambda: any("node nonesuch does not exist" in why for why in running.state()["waits"]))
    site.plane.add_node("nonesuch")
    running.kernel(XID_79)
    site.plane.wait("found", lambda: "NoGpuFault" in json.dumps(site.node()["status"]) or site.taints() == [UNHEALTHY])


def test_without_permission_it_says_so_and_goes_on_judging(site: Site, agent: StartAgent) -> None:
    site.plane.must("POST", f"/api/v1/namespaces/{site.name}/serviceaccounts", {"metadata": {"name": "nobody"}})
    credentials = site.plane.account_kubeconfig(site.name, "nobody")
    running = agent(kubeconfig=credentials)
    site.plane.wait("said", lambda: any("forbidden" in why for why in running.state()["waits"]))
    assert "ok" not in running.state()["status"]
    assert running.get("/healthz") == "the judge loop and the act loop turn\n"


def test_without_an_api_server_it_keeps_its_verdict_and_tries_again(site: Site, agent: StartAgent) -> None:
    gone = site.plane.directory / "gone.kubeconfig"
    text = site.plane.kubeconfig.read_text().replace(site.plane.url, "https://127.0.0.1:9")
    gone.write_text(text)
    running = agent(simulate="idle", kubeconfig=gone)
    running.wait_for_simulation()
    running.inject("--gpu", "1", "--lost")
    site.plane.wait("judged", lambda: running.state()["status"] == "unhealthy")
    assert any("does not answer" in why for why in running.state()["waits"])
    assert "gpu_health_step_failures_total" in running.get("/metrics")


def test_dry_run_looks_and_plans_and_writes_nothing(site: Site, agent: StartAgent) -> None:
    running = agent(simulate="idle", extra=("--dry-run",))
    running.wait_for_simulation()
    before = site.node()["metadata"]["managedFields"]
    running.inject("--gpu", "1", "--lost")
    site.plane.wait("planned", lambda: any("dry run: would taint" in why for why in running.state()["waits"]))
    assert site.taints() == []
    ours = [f["manager"] for f in site.node()["metadata"]["managedFields"]]
    assert ours == [f["manager"] for f in before]


def test_a_taint_list_that_another_changed_meanwhile_is_a_conflict_to_look_at_again(site: Site) -> None:
    """In the API server's own words, which are the same whether the list differs or is gone."""
    client = KubeClient(connect(str(site.plane.kubeconfig)), site.nodes[0], Config())
    path, merge = f"/api/v1/nodes/{site.nodes[0]}", "application/merge-patch+json"
    for before, after in (([], ["theirs"]), (["theirs"], ["others"]), (["theirs"], [])):
        lists = [[{"key": key, "effect": "NoSchedule"} for key in keys] for keys in (before, after)]
        site.plane.must("PATCH", path, {"spec": {"taints": lists[0] or None}}, merge)
        client.look(closely=False)
        site.plane.must("PATCH", path, {"spec": {"taints": lists[1] or None}}, merge)
        with pytest.raises(RefusedError, match="changed meanwhile") as refused:
            client.do(Retaint((Taint(SOFT_TAINT, "", "PreferNoSchedule"),)))
        assert (refused.value.status, site.taints()) == (409, after)


def test_release_takes_everything_of_ours_off_a_node(site: Site, agent: StartAgent) -> None:
    running = agent(mode="taint")
    site.plane.wait("healthy", lambda: running.state()["status"] == "healthy")
    running.kernel("NVRM: Xid (PCI:0000:1b:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.")
    site.plane.wait("taint", lambda: site.taints() == ["gpu-health-agent/unhealthy"])
    site.plane.wait("condition", lambda: site.condition("GpuUnhealthy")["status"] == "True")
    running.stop()
    command = [
        sys.executable,
        "-m",
        "agent",
        "release",
        "--node",
        site.nodes[0],
        "--kubeconfig",
        str(site.plane.kubeconfig),
    ]
    told = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=30)
    assert told.returncode == 0, told.stderr
    assert "given back" in told.stdout
    assert (site.taints(), site.condition("GpuUnhealthy")["status"]) == ([], "absent")
    assert "gpu-health-agent" not in json.dumps(site.node()["metadata"]["labels"])
