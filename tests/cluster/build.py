"""Builds the programs of the control plane and of real nodes once, from Go modules, into a cache outside the tree."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from tests.cache import go_environment, key, made_once, say

SOURCE = Path(__file__).parent / "k8s"
PROGRAMS = (
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubectl",
    "kwok",
    "kubelet",
    "kube-proxy",  # the real nodes of tests/nodes
)
STAGES = "kwok-stages.yaml"
TAGS = "selinux,notest,grpcnotrace"
_SAY_EVERY_S = 15
# kwok plays nothing without stages; its own module ships these.
_STAGES = (
    "node/fast/node-initialize",
    "node/heartbeat-with-lease/node-heartbeat-with-lease",
    "pod/fast/pod-ready",
    "pod/fast/pod-complete",
    "pod/fast/pod-delete",
)


def assets() -> Path:
    """The folder with the programs: KUBEBUILDER_ASSETS if set, else the cache, built if need be."""
    given = os.environ.get("KUBEBUILDER_ASSETS")
    if given:
        missing = [name for name in (*PROGRAMS, STAGES) if not (Path(given) / name).exists()]
        if missing:
            raise RuntimeError(f"KUBEBUILDER_ASSETS={given} lacks {', '.join(missing)}: unset it to build them")
        return Path(given)
    files = [*(SOURCE / name for name in ("go.mod", "go.sum", "main.go")), Path(__file__)]
    return made_once(f"k8s-{key(files)}", _build)


def _build(work: Path) -> None:
    environment = go_environment()

    def go(*arguments: str) -> str:
        return subprocess.run(
            ["go", *arguments], cwd=SOURCE, env=environment, check=True, text=True, stdout=subprocess.PIPE
        ).stdout.strip()

    say("building the test cluster's programs, once; about 8 minutes on two cores")
    version = go("list", "-m", "-f", "{{.Version}}", "k8s.io/kubernetes")
    major, minor, _ = version.removeprefix("v").split(".")
    stamp, client = "k8s.io/component-base/version", "k8s.io/client-go/pkg/version"
    flags = ["-s -w"]
    for package in (stamp, client):
        flags += [
            f"-X {package}.gitVersion={version}",
            f"-X {package}.gitMajor={major}",
            f"-X {package}.gitMinor={minor}",
        ]
    flags += [
        f"-X {stamp}.gitTreeState=clean",
        f"-X {stamp}.gitCommit=proxy",
        f"-X {stamp}.buildDate=1970-01-01T00:00:00Z",
    ]
    began = time.monotonic()
    command = ["go", "build", "-trimpath", "-tags", TAGS, "-ldflags", " ".join(flags), "-o", str(work / "kube"), "."]
    with subprocess.Popen(command, cwd=SOURCE, env=environment) as process:
        while True:
            try:
                code = process.wait(_SAY_EVERY_S)
                break
            except subprocess.TimeoutExpired:
                say(f"building the test cluster's programs: {(time.monotonic() - began) / 60:.1f} min so far")
    if code:
        raise RuntimeError(f"go build failed with exit code {code}; its output is above")
    for name in PROGRAMS:
        (work / name).symlink_to("kube")
    stages = Path(go("list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/kwok")) / "kustomize/stage"
    (work / STAGES).write_text("\n---\n".join((stages / f"{name}.yaml").read_text() for name in _STAGES))
    say(f"built in {(time.monotonic() - began) / 60:.1f} min")


if __name__ == "__main__":
    print(assets())
