"""The door on a real node: a pod without any right in the cluster asks whether it may join there."""

from __future__ import annotations

import itertools
import json
from typing import Any

from tests.image.build import IMAGE
from tests.nodes.conftest import Site, serves

_NUMBERS = itertools.count(1)
_SOCKET = "/door/check.sock"
# Asks over and over, as a program that knows HTTP alone, and says how long the answers took.
_ASKS = f"""
import json, socket, time
def ask():
    began = time.monotonic()
    with socket.socket(socket.AF_UNIX) as door:
        door.settimeout(5)
        door.connect({_SOCKET!r})
        door.sendall(b"GET /check HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n")
        answer = b""
        while part := door.recv(65536):
            answer += part
    return time.monotonic() - began, int(answer.split()[1])
took, codes = zip(*(ask() for _ in range(200)))
print(json.dumps(dict(p50_ms=1e3 * sorted(took)[100], p99_ms=1e3 * sorted(took)[197], codes=sorted(set(codes)))))
"""


def asked(site: Site, node: str, **container: Any) -> tuple[int, str]:
    """How a pod on this node ends that asks there, and what it said. It has no token."""
    name = f"asks-{next(_NUMBERS)}"
    main = {"name": "main", "image": IMAGE, "imagePullPolicy": "Never", **container}
    main["volumeMounts"] = [{"name": "door", "mountPath": "/door", "readOnly": True}]
    spec = {
        "nodeName": node,
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "containers": [main],
        "volumes": [{"name": "door", "hostPath": {"path": "/run/gpu-health-agent", "type": "Directory"}}],
    }
    path = f"/api/v1/namespaces/{site.name}/pods"
    site.plane.must("POST", path, {"metadata": {"name": name}, "spec": spec})

    def ended() -> dict[str, Any]:
        (status,) = site.plane.must("GET", f"{path}/{name}")["status"].get("containerStatuses") or [{}]
        return dict((status.get("state") or {}).get("terminated") or {})

    site.plane.wait(f"{name} ended", ended, 60)
    return ended()["exitCode"], site.plane.kubectl("logs", f"--namespace={site.name}", name)


def test_a_pod_without_rights_is_told_whether_its_node_is_fit(site: Site) -> None:
    command = {"args": ["check", "--socket", _SOCKET]}
    assert asked(site, "n1", **command)[0] == 0
    code, said = asked(site, "n1", command=["/opt/gpu-health-agent/bin/python", "-c", _ASKS])
    assert code == 0, said
    told = json.loads(said)
    print(told)
    assert told["codes"] == [200]
    with site.paused():
        site.inject("n1", "--gpu", "6", "--xid", "95")
        site.plane.wait("it is judged", lambda: site.state("n1")["status"] == "unhealthy")
        code, said = asked(site, "n1", **command)
        assert (code, "xid-95" in said) == (2, True), said
        assert asked(site, "n2", **command)[0] == 0
        site.inject("n1", "--clear")
    site.plane.wait("the node is back", lambda: site.taints("n1") == [] and serves(site.rig, "n1"), 120)
