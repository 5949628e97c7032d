"""An eviction webhook that hangs, on a real API server: it is its own namespace's trouble."""

from __future__ import annotations

import socket
import time

from tests.cluster.conftest import Site, StartAgent
from tests.cluster.test_spine import UNHEALTHY, XID_79

_HOOKS = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"
_HANGS_S = 4


def test_a_webhook_that_hangs_keeps_its_own_pods_and_delays_no_other_by_more_than_one_request(
    site: Site, agent: StartAgent
) -> None:
    hooked = f"a-{site.name}"  # its pods would go first
    site.plane.add_namespace(hooked)
    site.deploy("train", 3, pin=site.nodes[0])
    pods = f"/api/v1/namespaces/{hooked}/pods"

    def there() -> list[str]:
        return [one["spec"].get("nodeName", "") for one in site.plane.must("GET", pods)["items"]]

    labels = {"app": "guarded"}
    spec = {"replicas": 3, "selector": {"matchLabels": labels}}
    template = {"metadata": {"labels": labels}, "spec": site._pod()}
    with site._pinned(site.nodes[0]):
        path = f"/apis/apps/v1/namespaces/{hooked}/deployments"
        site.plane.must("POST", path, {"metadata": {"name": "guarded"}, "spec": {**spec, "template": template}})
        site.plane.wait("its pods are bound", lambda: there() == [site.nodes[0]] * 3)
    with socket.create_server(("127.0.0.1", 0)) as listener:  # it lets everybody in, and then says nothing
        hook = {
            "name": "hours.example.com",
            "clientConfig": {"url": f"https://127.0.0.1:{listener.getsockname()[1]}/"},
            "rules": [
                {"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods/eviction"], "operations": ["CREATE"]}
            ],
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": hooked}},
            "timeoutSeconds": _HANGS_S,
            "sideEffects": "None",
            "admissionReviewVersions": ["v1"],
        }
        site.plane.must("POST", _HOOKS, {"metadata": {"name": site.name}, "webhooks": [hook]})
        running = agent()
        site.plane.wait("healthy", lambda: running.state()["status"] == "healthy")
        time.sleep(2)  # the API server takes a webhook up from a watch of its own
        running.kernel(XID_79)
        site.plane.wait("taint", lambda: site.taints() == [UNHEALTHY])
        began = time.monotonic()
        site.plane.wait("the others moved", lambda: site.running("train") == [site.nodes[1]] * 3)
        assert time.monotonic() - began < 3 * _HANGS_S, "as long as one request, and not as three"
        said = "failed calling webhook"
        site.plane.wait("named", lambda: sum(said in why for why in running.state()["waits"]) == 3)
        assert f'gpu_health_waits{{kind="eviction",node="{site.nodes[0]}"}} 3.0' in running.get("/metrics")
        assert f'gpu_health_api_circuit_open{{node="{site.nodes[0]}"}} 0.0' in running.get("/metrics")
        site.plane.must("DELETE", f"{_HOOKS}/{site.name}")
    site.plane.wait("the guarded follow", lambda: there() == [site.nodes[1]] * 3)
