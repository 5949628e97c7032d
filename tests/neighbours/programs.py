"""Builds the controllers once, from their Go modules, into the cache beside the control plane's programs."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.cache import go_environment, key, made_once, say
from tests.cluster.build import TAGS, assets

SOURCE = Path(__file__).parent / "controllers"
PROGRAM, MANIFESTS = "controller", "manifests.yaml"


@dataclass(frozen=True)
class Controller:
    """A program of a Go module, and the folder of the module that installs it."""

    module: str
    version: str
    package: str = ""  # of the module as released; or one that is built here, with our list of libraries
    here: str = ""
    manifests: str = "config/default"
    has_webhooks: bool = True
    certifies_itself: bool = False  # it makes its webhooks' certificate, in a Secret
    given: str = ""  # the variable that names a folder with the program, and the manifests in one file


KUEUE = Controller("sigs.k8s.io/kueue", "v0.17.0", "/cmd/kueue", certifies_itself=True)
JOBSET = Controller("sigs.k8s.io/jobset", "v0.12.0", here="sigs.k8s.io/jobset")
CLUSTER_API = Controller(
    "sigs.k8s.io/cluster-api", "v1.14.2", here="./cluster_api", manifests="core/config/default", has_webhooks=False
)
ALL = (KUEUE, JOBSET, CLUSTER_API)
NODE_READINESS = Controller(
    "sigs.k8s.io/node-readiness-controller", "v0.5.0", has_webhooks=False, given="NODE_READINESS_CONTROLLER"
)


def built(controller: Controller) -> Path:
    """The folder with the program and its manifests, built if need be."""
    if controller.given:
        return Path(os.environ[controller.given])
    kubectl = assets() / "kubectl"
    name = f"{controller.module.rpartition('/')[2]}-{controller.version}"
    if controller.here:
        name += f"-{key(SOURCE / file for file in ('go.mod', 'go.sum', 'cluster_api/main.go'))}"

    def make(folder: Path) -> None:
        say(f"building {name}, once")
        environment = {**go_environment(), "GOBIN": str(folder)}
        flags = ["-trimpath", "-ldflags", "-s -w"]
        if controller.here:
            # The control plane's tags: what it has compiled is not compiled again.
            command = ["go", "build", "-tags", TAGS, *flags, "-o", str(folder), controller.here]
        else:
            command = ["go", "install", *flags, f"{controller.module}{controller.package}@{controller.version}"]
        subprocess.run(["nice", *command], cwd=SOURCE, env=environment, check=True)
        (program,) = folder.iterdir()
        program.rename(folder / PROGRAM)
        command = ["go", "mod", "download", "-json", f"{controller.module}@{controller.version}"]
        told = subprocess.run(command, cwd=SOURCE, env=environment, check=True, text=True, stdout=subprocess.PIPE)
        with (folder / MANIFESTS).open("wb") as out:
            command = [str(kubectl), "kustomize", f"{json.loads(told.stdout)['Dir']}/{controller.manifests}"]
            subprocess.run(command, check=True, stdout=out)

    return made_once(name, make)


if __name__ == "__main__":
    for one in ALL:
        print(built(one))
