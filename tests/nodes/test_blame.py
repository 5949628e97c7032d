"""Whose error it was: from the pid in the kernel's line, by the node's real /proc, to the pod and its Deployment."""

from __future__ import annotations

from typing import Any

from tests.nodes.conftest import Site


def test_a_program_that_fails_on_two_gpus_is_named_by_its_deployment(site: Site) -> None:
    site.deploy("train", "n1", gpus=2)
    pod = site.pod("train")
    pid = str(site.pid(pod, "-c"))
    for gpu in ("4", "5"):
        site.inject("n1", "--gpu", gpu, "--process", pid)
    site.plane.wait("the process is seen", lambda: _processes(site, "4") == _processes(site, "5") == pid)
    for gpu in ("4", "5"):
        site.inject("n1", "--gpu", gpu, "--xid", "31", "--pid", pid)
    site.plane.wait("the program is named", lambda: f"{site.name}/Deployment/train" in " ".join(_told(site)))
    site.plane.wait("on its pod", lambda: _events(site, pod) == ["WorkloadErrors"])
    assert site.taints("n1") == []
    assert site.where("train") == ["n1"], "an application's error moves nothing"


def _processes(site: Site, gpu: str) -> str:
    gpus = site.state("n1")["gpus"]
    return next(str(one.get("processes", "")) for one in gpus.values() if str(one["index"]) == gpu)


def _told(site: Site) -> list[str]:
    return [fault["message"] for fault in site.state("n1")["faults"]]


def _events(site: Site, pod: dict[str, Any]) -> list[str]:
    events = site.plane.must("GET", f"/api/v1/namespaces/{site.name}/events")["items"]
    return [
        e["reason"]
        for e in events
        if e["involvedObject"].get("uid") == pod["metadata"]["uid"]
        and e["source"].get("component") == "gpu-health-agent"
    ]
