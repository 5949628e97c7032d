"""Builds the image that the kit's pods run in: Python and requirements.txt, on the same base as the agent's."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.cluster.build import key, made_once
from tests.image.build import BASE, ROOT, base, bud, python_index, storage

KIT = "localhost/gpu-kit:test"
_REQUIREMENTS = ROOT / "daemonset/kit/requirements.txt"
_RECIPE = f"""FROM {BASE}
ARG PYPI=https://pypi.org/simple
COPY requirements.txt /
RUN python3 -m venv /opt/kit && \
 /opt/kit/bin/pip install --no-cache-dir --only-binary :all: --index-url "$PYPI" -r /requirements.txt
ENV PATH=/opt/kit/bin:/usr/bin:/bin PYTHONUNBUFFERED=1
"""


def kit_image(say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True)) -> Path:
    """A docker archive; built if need be."""
    rootfs = base(say)
    name = f"kit-image-{key([_REQUIREMENTS, Path(__file__)])}"
    return made_once(name, lambda work: _build(work, rootfs, say)) / "gpu-kit.tar"


def _build(work: Path, rootfs: Path, say: Callable[[str], None]) -> None:
    say("building the kit's image, once for each change of its requirements")
    shutil.copy(_REQUIREMENTS, work)
    with storage() as options:
        bud(options, BASE, "FROM scratch\nADD debian.tar /\n", rootfs.parent)
        bud(options, KIT, _RECIPE, work, *python_index())
        archive = f"docker-archive:{work / 'gpu-kit.tar'}:{KIT}"
        subprocess.run(["buildah", *options, "push", "--quiet", KIT, archive], check=True)
