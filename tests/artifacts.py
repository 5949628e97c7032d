"""``make package``: what a release is made of, in build/package: wheel, chart, SBOM, and as root the image.

One version names them all, that of agent/__init__.py; ``make chart`` writes it into the manifests and the chart.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

from agent import __version__
from tests.chart import CHART
from tests.cluster.helm import helm
from tests.image import build

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "build" / "package"
_PACKAGED = ("agent", "daemonset/kit", "pyproject.toml", "LICENSE", "README.md")


def main() -> int:
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    for make in (wheel, bill_of_materials, chart, image):
        made = make(FOLDER)
        sys.stdout.write(f"{made.relative_to(ROOT)}  {made.stat().st_size / 1e6:.2f} MB\n")
        sys.stdout.flush()
    return 0


def wheel(folder: Path) -> Path:
    """Made of a copy of its own files: setuptools would take along whatever an earlier build left in the tree."""
    with tempfile.TemporaryDirectory() as name:
        for part in _PACKAGED:
            copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
            (Path(name) / part).parent.mkdir(exist_ok=True)
            copy(ROOT / part, Path(name) / part)
        _run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), name)
    return _wheel(folder)


def bill_of_materials(folder: Path) -> Path:
    """What the wheel there brings with it, as CycloneDX: of a new environment that holds the wheel alone."""
    target = folder / f"gpu-health-agent-{__version__}.cdx.json"
    project = (ROOT / "pyproject.toml").read_text()
    (tool,) = tomllib.loads(project)["project"]["optional-dependencies"]["package"]
    with tempfile.TemporaryDirectory() as name:
        product, tools = (_environment(Path(name) / what) for what in ("product", "tools"))
        _run(str(product), "-m", "pip", "install", "--quiet", str(_wheel(folder)))
        _run(str(product), "-m", "pip", "uninstall", "--quiet", "--yes", "setuptools", "pip")
        _run(str(tools), "-m", "pip", "install", "--quiet", tool)
        written = ("--output-format", "JSON", "--output-reproducible", "--output-file", str(target))
        described = Path(name) / "pyproject.toml"  # the tool runs no code, and so finds no version in it
        described.write_text(project.replace('dynamic = ["version"]', f'version = "{__version__}"'))
        _run(str(tools), "-m", "cyclonedx_py", "environment", "--pyproject", str(described), *written, str(product))
    return target


def chart(folder: Path) -> Path:
    _run(str(helm()), "package", str(CHART), "--destination", str(folder))
    return folder / f"gpu-health-agent-{__version__}.tgz"


def image(folder: Path) -> Path:
    """As an archive that ``docker load`` and ``podman load`` take, under the version's tag."""
    archive, _ = build.images()
    target = folder / f"gpu-health-agent-{__version__}-{platform.machine()}.tar"
    with build.storage() as options:
        _run("buildah", *options, "pull", "--quiet", f"docker-archive:{archive}")
        _run("buildah", *options, "tag", build.IMAGE, f"docker.io/library/{tag()}")
        _run("buildah", *options, "rmi", build.IMAGE)  # its other name, which the archive would bear as well
        _run("buildah", *options, "push", "--quiet", f"docker.io/library/{tag()}", f"docker-archive:{target}:{tag()}")
    return target


def tag() -> str:
    return f"gpu-health-agent:{__version__}"


def _wheel(folder: Path) -> Path:
    return folder / f"gpu_health_agent-{__version__}-py3-none-any.whl"


def _environment(folder: Path) -> Path:
    venv.create(folder, with_pip=True)
    return folder / "bin" / "python"


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": ""})


if __name__ == "__main__":
    sys.exit(main())
