"""medik8s' own node-healthcheck-operator beside the agent: the remediation of a drained node that needs another."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import yaml

from tests.cluster.conftest import OVERLAYS, Site, StartAgent
from tests.cluster.control_plane import ControlPlane
from tests.neighbours.beside import Place, beside
from tests.neighbours.programs import MEDIK8S

CHECK = OVERLAYS / "medik8s" / "nodehealthcheck.yaml"
_KINDS = "/apis/test.medik8s.io/v1/namespaces/default"
REMEDIATIONS, TEMPLATES = f"{_KINDS}/testremediations", f"{_KINDS}/testremediationtemplates"
# Whoever remediates: two kinds that the test plays, and the right to make them, as medik8s' documents ask for it.
_REMEDIATOR = """
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: PLURAL.test.medik8s.io}
spec:
  group: test.medik8s.io
  names: {kind: KIND, plural: PLURAL}
  scope: Namespaced
  versions:
    - name: v1
      served: true
      storage: true
      schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
---
"""
_RIGHTS = """
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata:
  name: test-remediation
  labels: {rbac.ext-remediation/aggregate-to-ext-remediation: "true"}
rules:
  - {apiGroups: [test.medik8s.io], resources: ["*"], verbs: ["*"]}
"""


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with beside(MEDIK8S, "medik8s", tmp_path_factory.mktemp("plane"), _arguments) as made:
        kinds = "".join(
            _REMEDIATOR.replace("PLURAL", f"{kind.lower()}s").replace("KIND", kind)
            for kind in ("TestRemediation", "TestRemediationTemplate")
        )
        made.kubectl("apply", "-f", "-", text=kinds + _RIGHTS)
        made.kubectl("wait", "--for=condition=Established", "crd", "--all")
        template = {"apiVersion": "test.medik8s.io/v1", "kind": "TestRemediationTemplate"}
        there = {"name": "my-template", "namespace": "default"}
        made.must("POST", TEMPLATES, {**template, "metadata": there, "spec": {"template": {"spec": {}}}})
        check = yaml.safe_load(CHECK.read_text())
        check["spec"]["remediationTemplate"] = {**template, **there}
        made.kubectl("apply", "-f", "-", text=yaml.safe_dump(check))
        yield made


def _arguments(place: Place) -> tuple[str, ...]:
    health = f"--health-probe-bind-address=127.0.0.1:{place.health}"
    return (health, "--metrics-bind-address=0", "--leader-elect=false")


def remediated(plane: ControlPlane) -> list[str]:
    """The nodes."""
    return [str(one["metadata"]["name"]) for one in plane.must("GET", REMEDIATIONS)["items"]]


def test_a_node_that_needs_another_is_remediated_once_it_is_drained(site: Site, agent: StartAgent) -> None:
    plane, (bad, good) = site.plane, site.nodes
    for spare in ("spare-1", "spare-2"):  # it acts on no node while fewer than 51 % of them would be left
        plane.add_node(spare)
    settings = yaml.safe_load((OVERLAYS / "medik8s" / "config.yaml").read_text())
    del settings["mode"]
    site.deploy("train", 1, pin=bad)
    site.budget("train", 1)
    running = agent(simulate="idle", **settings)
    plane.wait("healthy", lambda: running.state()["status"] == "healthy")
    running.inject("--gpu", "3", "--xid", "64")
    plane.wait("refused", lambda: any("may not be evicted yet" in why for why in running.state()["waits"]))
    assert remediated(plane) == []
    plane.must("DELETE", f"/apis/policy/v1/namespaces/{site.name}/poddisruptionbudgets/train")
    plane.wait("it is remediated", lambda: remediated(plane) == [bad], 90)
    assert site.running("train") == [good]
