"""Builds the image that the kit's pods run in, by its own Dockerfile on the same base as the agent's."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.cache import key, made_once
from tests.image.build import BASE, ROOT, base, bud, python_index, storage

KIT = "localhost/gpu-kit:test"
FOLDER = ROOT / "daemonset/kit"


def kit_image(say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True)) -> Path:
    """A docker archive; built if need be."""
    rootfs = base(say)
    name = f"kit-image-{key([FOLDER / 'Dockerfile', FOLDER / 'requirements.txt', *sorted(FOLDER.glob('*.py'))])}"
    return made_once(name, lambda work: _build(work, rootfs, say)) / "gpu-kit.tar"


def _build(work: Path, rootfs: Path, say: Callable[[str], None]) -> None:
    say("building the kit's image, once for each change of it")
    recipe = (FOLDER / "Dockerfile").read_text()
    with storage() as options:
        bud(options, BASE, "FROM scratch\nADD debian.tar /\n", rootfs.parent)
        bud(options, KIT, recipe, FOLDER, *python_index(), "--build-arg", f"BASE_IMAGE={BASE}")
        archive = f"docker-archive:{work / 'gpu-kit.tar'}:{KIT}"
        subprocess.run(["buildah", *options, "push", "--quiet", KIT, archive], check=True)
