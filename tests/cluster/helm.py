"""Builds helm once, from its Go module, into the cache beside the control plane's programs."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.cluster.build import _go

_VERSION = "v3.22.0"


def helm(say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True)) -> Path:
    """The program, built if need be."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpu-health-agent"
    target = cache / f"helm-{_VERSION}"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "helm.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (target / "helm").exists():
            say("building helm, once; about 3 minutes on two cores")
            path = f"{_go(cache, say)}:{os.environ['PATH']}"
            environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "", "GOBIN": str(target), "PATH": path}
            command = ["go", "install", "-trimpath", "-ldflags", "-s -w", f"helm.sh/helm/v3/cmd/helm@{_VERSION}"]
            subprocess.run(command, env=environment, check=True)
    return target / "helm"


if __name__ == "__main__":
    print(helm())
