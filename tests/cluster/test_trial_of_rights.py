"""Whether the agent may do what it is there for, as a real API server says it with the shipped RBAC and policies."""

from __future__ import annotations

import copy
import urllib.error
from typing import Any

import pytest

from tests.cluster.conftest import AgentProcess, Site, StartAgent
from tests.cluster.test_policies import in_force

RBAC = "/apis/rbac.authorization.k8s.io/v1"


def readyz(running: AgentProcess) -> int:
    try:
        running.get("/readyz")
    except urllib.error.HTTPError as error:
        error.close()
        return error.code
    return 200


def bind(site: Site, kind: str, where: str, role: str) -> None:
    name = {"metadata": {"name": site.name}}
    subjects = [{"kind": "ServiceAccount", "namespace": site.name, "name": "partial"}]
    ref = {"apiGroup": "rbac.authorization.k8s.io", "kind": kind.removesuffix("Binding"), "name": role}
    site.plane.must("POST", f"{RBAC}{where}/{kind.lower()}s", {**name, "roleRef": ref, "subjects": subjects})


@pytest.mark.parametrize(("group", "resource"), [("", "pods/eviction"), ("", "events")])
def test_an_agent_whose_role_lacks_a_rule_is_not_ready_and_says_which(
    site: Site, agent: StartAgent, group: str, resource: str
) -> None:
    plane = site.plane
    plane.must("POST", f"/api/v1/namespaces/{site.name}/serviceaccounts", {"metadata": {"name": "partial"}})
    rules: list[dict[str, Any]] = plane.must("GET", f"{RBAC}/clusterroles/gpu-health-agent")["rules"]
    fewer = [rule for rule in copy.deepcopy(rules) if resource not in rule["resources"]]
    assert len(fewer) == len(rules) - 1
    plane.must("POST", f"{RBAC}/clusterroles", {"metadata": {"name": site.name}, "rules": fewer})
    bind(site, "ClusterRoleBinding", "", site.name)
    bind(site, "RoleBinding", "/namespaces/gpu-health-agent", "gpu-health-agent")
    running = agent(kubeconfig=plane.account_kubeconfig(site.name, "partial"))
    said = f"the agent may not create {resource}, as its mode needs (daemonset/base grants it): "
    plane.wait("said", lambda: any(why.startswith(said) for why in running.state()["waits"]))
    (why,) = (why for why in running.state()["waits"] if "may not" in why)
    assert f'cannot create resource "{resource}" in API group "{group}"' in why
    assert readyz(running) == 503
    assert running.get("/healthz")
    assert f'gpu_health_waits{{kind="refused",node="{site.nodes[0]}"}} 1.0' in running.get("/metrics")
    role = plane.must("GET", f"{RBAC}/clusterroles/{site.name}")
    plane.must("PUT", f"{RBAC}/clusterroles/{site.name}", {**role, "rules": rules})
    plane.wait("ready", lambda: readyz(running) == 200, 90)
    plane.wait("no longer said", lambda: not any("may not" in why for why in running.state()["waits"]))


def test_with_the_shipped_rights_and_policies_every_trial_passes_and_changes_nothing(
    site: Site, agent: StartAgent
) -> None:
    plane = site.plane
    in_force(plane, plane.agent_token(site.nodes[0]), site.nodes[1])
    templates = {"reset_gpu": "gpu-reset", "reboot_node": "node-reboot"}
    running = agent(repair=templates)
    plane.wait("ready", lambda: readyz(running) == 200)
    plane.wait("nothing is waited for", lambda: running.state()["waits"] == [])
    leases = plane.must("GET", "/apis/coordination.k8s.io/v1/namespaces/gpu-health-agent/leases")["items"]
    events = plane.must("GET", "/api/v1/namespaces/default/events")["items"]
    assert not [one for one in leases if f"-{site.name}-" in one["metadata"]["name"]]
    assert not [one for one in events if "trial" in one["metadata"]["name"]]
    assert site.taints() == []


def test_a_token_that_the_policies_bind_to_another_node_is_told_before_it_is_needed(
    site: Site, agent: StartAgent
) -> None:
    in_force(site.plane, site.plane.agent_token(site.nodes[0]), site.nodes[1])
    running = agent(kubeconfig=site.plane.agent_kubeconfig(site.nodes[1]))
    site.plane.wait("said", lambda: any("its own Node only" in why for why in running.state()["waits"]))
    assert readyz(running) == 503
