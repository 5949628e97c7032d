"""Builds the controllers once, from their Go modules, into the cache beside the control plane's programs."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.cache import go_environment, key, made_once, say
from tests.cluster.build import TAGS, assets
from tests.cluster.helm import helm

SOURCE = Path(__file__).parent / "controllers"
PROGRAM, MANIFESTS = "controller", "manifests.yaml"


@dataclass(frozen=True)
class Controller:
    """A program of a Go module, and the folders of the module that install it."""

    module: str
    version: str
    package: str = ""  # of the module as released; or one that is built here, with a list of libraries of ours
    here: str = ""
    libraries: str = ""  # where that list is, below the controllers
    manifests: str = "config/default"
    chart: str = ""  # what Helm makes manifests of, in place of these, and more manifests beside it
    more: str = ""
    has_webhooks: bool = True
    certifies_itself: bool = False  # it makes its webhooks' certificate, in a Secret
    given: str = ""  # the variable that names a folder with the program, and the manifests in one file


KUEUE = Controller("sigs.k8s.io/kueue", "v0.17.0", "/cmd/kueue", certifies_itself=True)
JOBSET = Controller("sigs.k8s.io/jobset", "v0.12.0", here="sigs.k8s.io/jobset")
CLUSTER_API = Controller(
    "sigs.k8s.io/cluster-api", "v1.14.2", here="./cluster_api", manifests="core/config/default", has_webhooks=False
)
KARPENTER = Controller(
    "sigs.k8s.io/karpenter",
    "v1.15.0",
    here=".",
    libraries="karpenter",
    chart="kwok/charts",
    more="kwok/apis/crds",
    has_webhooks=False,
)
ALL = (KUEUE, JOBSET, CLUSTER_API, KARPENTER)
NODE_READINESS = Controller(
    "sigs.k8s.io/node-readiness-controller", "v0.5.0", has_webhooks=False, given="NODE_READINESS_CONTROLLER"
)
MEDIK8S = Controller(
    "github.com/medik8s/node-healthcheck-operator",
    "of July 2026",
    has_webhooks=False,
    given="NODE_HEALTHCHECK_OPERATOR",
)


def built(controller: Controller) -> Path:
    """The folder with the program and its manifests, built if need be."""
    if controller.given:
        return Path(os.environ[controller.given])
    source, short = SOURCE / controller.libraries, controller.module.rpartition("/")[2]
    programs = assets(), helm() if controller.chart else Path()
    name = f"{short}-{controller.version}"
    if controller.here:
        ours = sorted(source.glob(f"{controller.here}/*.go"))
        name += f"-{key([source / 'go.mod', source / 'go.sum', *ours])}"

    def make(folder: Path) -> None:
        say(f"building {name}, once")
        environment = {**go_environment(), "GOTOOLCHAIN": "auto", "GOBIN": str(folder)}
        flags = ["-trimpath", "-ldflags", "-s -w"]
        if controller.here:
            # The control plane's tags beside its libraries: what it has compiled is not compiled again.
            tags = () if controller.libraries else ("-tags", TAGS)
            command = ["go", "build", *tags, *flags, "-o", f"{folder}/{PROGRAM}", controller.here]
        else:
            command = ["go", "install", *flags, f"{controller.module}{controller.package}@{controller.version}"]
        subprocess.run(["nice", *command], cwd=source, env=environment, check=True)
        (program,) = folder.iterdir()
        program.rename(folder / PROGRAM)
        command = ["go", "mod", "download", "-json", f"{controller.module}@{controller.version}"]
        told = subprocess.run(command, cwd=source, env=environment, check=True, text=True, stdout=subprocess.PIPE)
        module = Path(json.loads(told.stdout)["Dir"])
        command = [str(programs[0] / "kubectl"), "kustomize", str(module / controller.manifests)]
        if controller.chart:
            chart, where = str(module / controller.chart), ("--namespace", "kube-system", "--include-crds")
            command = [str(programs[1]), "template", short, chart, *where]
        text = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout
        more = sorted((module / controller.more).glob("*.yaml")) if controller.more else ()
        (folder / MANIFESTS).write_text("\n---\n".join([text, *(file.read_text() for file in more)]))

    return made_once(name, make)


if __name__ == "__main__":
    for one in ALL:
        print(built(one))
