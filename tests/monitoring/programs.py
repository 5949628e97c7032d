"""Programs from Debian packages, unpacked into a cache outside the tree: nothing is installed, no service starts."""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "gpu-health-agent" / "debian"


@cache
def program(package: str, name: str) -> str:
    """The path of a package's program, of the version that apt would install now."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests in several processes want the same at once
        folder = CACHE / _file(package).removesuffix(".deb")
        if not folder.is_dir():
            _unpack(package, folder)
    return str(folder / "usr" / "bin" / name)


def at_home(package: str, name: str) -> tuple[str, ...]:
    """The start of a command line under which a program finds its package's files in /usr/share."""
    path = Path(program(package, name))
    own = "" if os.getuid() == 0 else "--map-root-user"
    script = 'mount --bind "$0" /usr/share && exec "$@"'
    return ("unshare", "--mount", *own.split(), "sh", "-c", script, str(path.parents[1] / "share"), str(path))


def _file(package: str) -> str:
    """The name of the package's file, which carries its version."""
    command = ["apt-get", "--quiet=2", "--print-uris", "download", package]
    asked = subprocess.run(command, capture_output=True, text=True)
    if asked.returncode or not asked.stdout:  # a fresh machine has no lists yet
        _run("apt-get", "--quiet=2", "update")
        asked = subprocess.run(command, capture_output=True, text=True, check=True)
    return shlex.split(asked.stdout)[1]


def _unpack(package: str, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=CACHE) as work:
        # apt's sandbox user may not write into root's cache.
        _run("apt-get", "--quiet=2", "-o", "APT::Sandbox::User=root", "download", package, cwd=work)
        (deb,) = Path(work).glob("*.deb")
        _run("dpkg-deb", "--extract", str(deb), f"{work}/unpacked")
        shutil.move(f"{work}/unpacked", folder)


def _run(*command: str, cwd: str | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr or done.stdout}"
