"""Programs from Debian packages, unpacked into a cache outside the tree: nothing is installed, no service starts."""

from __future__ import annotations

import os
import shlex
import subprocess
from functools import cache, partial
from pathlib import Path

from tests.cache import alone, made_once


@cache
def program(package: str, name: str) -> str:
    """The path of a package's program, of the version that apt would install now."""
    with alone("debian/lists"):
        version = _file(package).removesuffix(".deb")
    return str(made_once(f"debian/{version}", partial(_unpack, package)) / "usr" / "bin" / name)


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
    # apt's sandbox user may not write into root's cache.
    _run("apt-get", "--quiet=2", "-o", "APT::Sandbox::User=root", "download", package, cwd=folder)
    (deb,) = folder.glob("*.deb")
    _run("dpkg-deb", "--extract", str(deb), str(folder))
    deb.unlink()


def _run(*command: str, cwd: Path | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr or done.stdout}"
