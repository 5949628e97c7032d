"""Builds the image of the Dockerfile without a registry: buildah, on a Debian base made by debootstrap.

What takes minutes is kept in the cache outside the tree, by its content.
"""

from __future__ import annotations

import os
import platform
import shutil
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from agent import __version__
from tests.cache import key, made_once
from tests.packages import need

ROOT = Path(__file__).parents[2]
IMAGE, PAUSE, BASE = "localhost/gpu-health-agent:test", "localhost/pause:test", "localhost/debian:test"
_SUITE = "bookworm"
_KEPT = 4  # images of other states of the tree, 320 MB each
_WASTE = ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info")
_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"


def images(say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True)) -> tuple[Path, Path]:
    """The agent's image and the pod sandbox's, as docker archives on one base; built if need be."""
    if os.getuid():
        raise RuntimeError("the image's tests need root: buildah and debootstrap change roots")
    rootfs = base(say)
    folder = made_once(f"image-{key([*sources(), Path(__file__)])}", lambda work: _build(work, rootfs, say))
    os.utime(folder)
    for old in sorted(folder.parent.glob("image-*"), key=lambda one: one.stat().st_mtime)[:-_KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return folder / "gpu-health-agent.tar", folder / "pause.tar"


def sources() -> Iterator[Path]:
    """What the image is made of: the recipe, and each file that it copies."""
    yield from (ROOT / "Dockerfile", ROOT / ".dockerignore")
    for line in (ROOT / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            for path in (ROOT / name for name in line.split()[1:-1]):
                inside = sorted(path.rglob("*")) if path.is_dir() else [path]
                yield from (one for one in inside if one.is_file() and "__pycache__" not in one.parts)


def base(say: Callable[[str], None]) -> Path:
    """A minimal Debian with Python as a tar, from the mirror that this machine's apt uses."""

    def make(work: Path) -> None:
        need("debootstrap")
        say("making a Debian base for the image, once; a minute or two")
        subprocess.run(
            ["debootstrap", "--variant=minbase", "--include=python3-venv", _SUITE, str(work / "root"), _mirror()],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        for folder in _WASTE:
            shutil.rmtree(work / "root" / folder)
        subprocess.run(
            ["tar", "-C", str(work / "root"), "--numeric-owner", "-cf", str(work / "debian.tar"), "."], check=True
        )
        shutil.rmtree(work / "root")

    return made_once(f"debian-{_SUITE}-{platform.machine()}-1", make) / "debian.tar"


def _mirror() -> str:
    form = ["--format", "$(REPO_URI) $(CODENAME) $(COMPONENT)", "Created-By: Packages"]
    listed = subprocess.run(["apt-get", "indextargets", *form], check=True, capture_output=True, text=True).stdout
    for line in listed.splitlines():
        uri, suite, component = line.split()
        if (suite, component) == (_SUITE, "main"):
            return uri
    raise RuntimeError(f"apt has no {_SUITE} main: the image's base is Debian 12")


def _build(work: Path, rootfs: Path, say: Callable[[str], None]) -> None:
    say("building the agent's image, once for each change of it")
    with storage() as options:
        bud(options, BASE, "FROM scratch\nADD debian.tar /\n", rootfs.parent)
        bud(options, PAUSE, f'FROM {BASE}\nENTRYPOINT ["/bin/sleep", "infinity"]\n', rootfs.parent)
        bud(
            options,
            IMAGE,
            (ROOT / "Dockerfile").read_text(),
            ROOT,
            *python_index(),
            "--build-arg",
            f"BASE_IMAGE={BASE}",
            "--build-arg",
            f"VERSION={__version__}",
        )
        for image, name in ((IMAGE, "gpu-health-agent"), (PAUSE, "pause")):
            archive = f"docker-archive:{work / name}.tar:{image}"
            subprocess.run(["buildah", *options, "push", "--quiet", image, archive], check=True)


def bud(options: Iterable[str], name: str, recipe: str, context: Path, *more: str) -> None:
    """Build one image, from a recipe and nothing of a registry."""
    command = ["buildah", *options, "bud", "--quiet", "--isolation", "chroot", "--pull-never", "--tag", name]
    command += [*more, "--file", "-", str(context)]
    subprocess.run(command, input=recipe, check=True, text=True, stdout=subprocess.DEVNULL)


def python_index() -> Iterator[str]:
    """This machine's way to PyPI: its index, and the certificates that it trusts."""
    told = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", "global.index-url"], capture_output=True, text=True
    ).stdout.strip()
    if index := os.environ.get("PIP_INDEX_URL") or told:
        yield from ("--build-arg", f"PYPI={index}")
    bundle = os.environ.get("PIP_CERT") or ssl.get_default_verify_paths().cafile
    if bundle:
        yield from ("--volume", f"{bundle}:{_BUNDLE}:ro")


@contextmanager
def storage() -> Iterator[list[str]]:
    """The options that give buildah and podman a place of their own for images, gone afterwards."""
    need("buildah", "podman", "runc")  # podman's own package is content with another runtime
    with tempfile.TemporaryDirectory(prefix="gpu-health-agent-images-") as folder:
        yield ["--root", f"{folder}/root", "--runroot", f"{folder}/run", "--storage-driver", "overlay"]


if __name__ == "__main__":
    print(*images(), sep="\n")
