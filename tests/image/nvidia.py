"""A Debian repository laid out as NVIDIA's, with packages of ours: what the Dockerfile asks for can be had anywhere."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Mapping
from pathlib import Path

CORE = "datacenter-gpu-manager-4-core"
_KEYRING = "cuda-keyring_1.1-1_all.deb"


def repository(folder: Path, mounted: str, architecture: str, library: str) -> Path:
    """In ``folder``, to be mounted at ``mounted``: the keyring's package, which names the repository, and DCGM's."""
    source = f"deb [trusted=yes] file://{mounted} ./\n"
    _package(folder, _KEYRING, "cuda-keyring", "1.1-1", "all", {"etc/apt/sources.list.d/cuda.list": source})
    files: dict[str, str | Path] = {
        f"{library}/libdcgm.so.4.6.0": "a library\n",
        f"{library}/libdcgm.so.4": Path("libdcgm.so.4.6.0"),
        "usr/share/datacenter-gpu-manager-4/bindings/python3/pydcgm.py": "VERSION = 4\n",
        "usr/bin/nv-hostengine": "none of ours\n",
    }
    name = f"{CORE}_4.6.0-1_{architecture}.deb"
    _package(folder, name, CORE, "1:4.6.0-1", architecture, files)
    deb = (folder / name).read_bytes()
    told = subprocess.run(
        ["dpkg-deb", "--field", str(folder / name)], check=True, capture_output=True, text=True
    ).stdout
    (folder / "Packages").write_text(
        f"{told}Filename: ./{name}\nSize: {len(deb)}\nSHA256: {hashlib.sha256(deb).hexdigest()}\n"
    )
    return folder


def _package(folder: Path, file: str, name: str, version: str, arch: str, files: Mapping[str, str | Path]) -> None:
    """``files``: contents, or where a link points."""
    root = folder / f"{name}.root"
    for place, held in {**files, "DEBIAN/control": _control(name, version, arch)}.items():
        path = root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(held, Path):
            path.symlink_to(held)
        else:
            path.write_text(held)
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "--build", str(root), str(folder / file)], check=True, capture_output=True
    )


def _control(name: str, version: str, arch: str) -> str:
    return (
        f"Package: {name}\nVersion: {version}\nArchitecture: {arch}\nMaintainer: nobody <nobody@example.com>\n"
        "Description: stands in for NVIDIA's\n"
    )
