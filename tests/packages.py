"""Debian packages that a test needs: installed where they are missing, with their services kept off."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

_POLICY = Path("/usr/sbin/policy-rc.d")  # asked by every package before it starts a service


def need(*packages: str) -> None:
    """Install what is missing; RuntimeError where that can't be done."""
    missing = [name for name in packages if not _installed(name)]
    if not missing:
        return
    if os.getuid() or not shutil.which("apt-get"):
        raise RuntimeError(f"these tests need root on Debian 12, with {' '.join(missing)}")
    kept_off = not _POLICY.exists()
    if kept_off:
        _POLICY.write_text("#!/bin/sh\nexit 101\n")
        _POLICY.chmod(0o755)
    try:
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update"], ["install", "--yes", "--no-install-recommends", *missing]):
            with tempfile.TemporaryFile("w+") as told:
                if subprocess.run(["apt-get", *command], env=environment, stdout=told, stderr=told).returncode:
                    told.seek(0)
                    raise RuntimeError(f"apt-get {' '.join(command)} failed:\n{told.read()[-2000:]}")
    finally:
        if kept_off:
            _POLICY.unlink()


def _installed(package: str) -> bool:
    command = ["dpkg-query", "--show", "--showformat=${db:Status-Status}", package]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout == "installed"
    except FileNotFoundError:
        return False
