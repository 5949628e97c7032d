"""API Priority and Fairness: what the real API server makes of the agent's requests."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from functools import partial

from tests.cluster.conftest import Site
from tests.cluster.control_plane import ControlPlane

NAMESPACE = "gpu-health-agent"
FLOWS = "/apis/flowcontrol.apiserver.k8s.io/v1/flowschemas"


def flow(plane: ControlPlane, method: str, path: str, token: str) -> str:
    """The FlowSchema that the API server had the request by; whether it was granted is another matter."""
    authority = json.loads(plane.kubeconfig.read_text())["clusters"][0]["cluster"]["certificate-authority"]
    context = ssl.create_default_context(cafile=authority)
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/merge-patch+json"}
    body = b"{}" if method != "GET" else None
    asked = urllib.request.Request(f"https://127.0.0.1:{plane.port}{path}", body, headers, method=method)
    try:
        answer = urllib.request.urlopen(asked, context=context, timeout=10)
    except urllib.error.HTTPError as error:
        answer = error
    with answer:
        uid = answer.headers["X-Kubernetes-PF-FlowSchema-UID"]
    named = {one["metadata"]["uid"]: one["metadata"]["name"] for one in plane.must("GET", FLOWS)["items"]}
    return str(named[uid])


def test_what_acts_does_not_wait_behind_reports_nor_anybody_elses_behind_ours(site: Site) -> None:
    plane, node = site.plane, f"/api/v1/nodes/{site.nodes[0]}"
    token = plane.agent_token(site.nodes[0])
    plane.wait("it is in force", lambda: flow(plane, "GET", node, token).startswith(NAMESPACE))
    leases = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases"
    for method, path in (
        ("GET", node),
        ("PATCH", node),
        ("GET", leases),
        ("POST", leases),
        ("PUT", f"{leases}/one"),
        ("GET", "/api/v1/pods?fieldSelector=spec.nodeName%3Da"),
        ("POST", "/api/v1/namespaces/default/pods/one/eviction"),
        ("DELETE", "/api/v1/namespaces/default/pods/one"),
        ("POST", f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs"),
    ):
        assert flow(plane, method, path, token) == "gpu-health-agent-acts", f"{method} {path}"
    for method, path in (
        ("POST", "/api/v1/namespaces/default/events"),
        ("PATCH", f"{node}/status"),
        ("GET", "/api/v1/nodes?limit=1"),
    ):
        assert flow(plane, method, path, token) == "gpu-health-agent-reports", f"{method} {path}"
    accounts = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts"
    plane.must("POST", accounts, {"metadata": {"name": "another"}})
    another = str(plane.must("POST", f"{accounts}/another/token", {"spec": {}})["status"]["token"])
    assert not flow(plane, "GET", node, another).startswith(NAMESPACE)


def test_the_api_server_finds_nothing_wrong_with_either_flow(plane: ControlPlane) -> None:
    def judged(name: str) -> list[tuple[str, str]]:
        conditions = plane.must("GET", f"{FLOWS}/{name}").get("status", {}).get("conditions") or ()
        return [(one["type"], one["status"]) for one in conditions]

    for name in ("gpu-health-agent-acts", "gpu-health-agent-reports"):
        plane.wait(f"{name} is judged", partial(judged, name))
        assert judged(name) == [("Dangling", "False")]
