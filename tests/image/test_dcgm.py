"""The Dockerfile with DCGM asked for: what NVIDIA's package brings is in the image, where the agent looks for it."""

from __future__ import annotations

import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.sources.dcgm.bindings import FOLDERS
from tests.image.build import BASE, ROOT, base, python_index, storage
from tests.image.nvidia import CORE, repository

_MOUNTED = "/nvidia"
_TRIPLET = sysconfig.get_config_var("MULTIARCH")


@pytest.fixture(scope="module")
def stage() -> Iterator[Path]:
    """The root of the stage that takes DCGM, built against a repository of ours."""
    rootfs = base(print)
    architecture = subprocess.run(["dpkg", "--print-architecture"], check=True, capture_output=True, text=True).stdout
    with storage() as options, tempfile.TemporaryDirectory(prefix="gpu-health-agent-nvidia-") as folder:
        Path(folder).chmod(0o755)  # apt reads it as a user of its own
        repository(Path(folder), _MOUNTED, architecture.strip(), f"usr/lib/{_TRIPLET}")

        def buildah(*arguments: str, text: str = "") -> str:
            done = subprocess.run(["buildah", *options, *arguments], input=text, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
            return done.stdout.strip()

        bud = ("bud", "--quiet", "--isolation", "chroot", "--pull-never", "--file", "-")
        buildah(*bud, "--tag", BASE, str(rootfs.parent), text="FROM scratch\nADD debian.tar /\n")
        buildah(
            *bud,
            "--tag",
            "localhost/dcgm:test",
            "--target",
            "dcgm",
            "--volume",
            f"{folder}:{_MOUNTED}:ro",
            *python_index(),
            "--build-arg",
            f"BASE_IMAGE={BASE}",
            "--build-arg",
            "DCGM=4",
            "--build-arg",
            f"NVIDIA=file://{_MOUNTED}",
            str(ROOT),
            text=(ROOT / "Dockerfile").read_text(),
        )
        container = buildah("from", "--pull-never", "localhost/dcgm:test")
        yield Path(buildah("mount", container))
        buildah("umount", container)
        buildah("rm", container)


def test_the_bindings_are_where_the_agent_looks_for_them(stage: Path) -> None:
    assert (stage / "dcgm" / str(FOLDERS[0]).lstrip("/") / "pydcgm.py").read_text() == "VERSION = 4\n"


def test_the_library_comes_with_its_links_where_the_bindings_look_for_it(stage: Path) -> None:
    link = stage / "dcgm" / "usr/lib" / str(_TRIPLET) / "libdcgm.so.4"
    assert link.readlink() == Path("libdcgm.so.4.6.0")
    assert link.read_text() == "a library\n"


def test_the_package_named_is_the_one_of_the_argument_and_nothing_else_of_it_is_taken(stage: Path) -> None:
    status = (stage / "var/lib/dpkg/status").read_text()
    assert f"Package: {CORE}\nStatus: install ok installed" in status
    taken = {path.relative_to(stage / "dcgm").parts[:2] for path in (stage / "dcgm").rglob("*") if path.is_file()}
    assert taken == {("usr", "lib"), ("usr", "share")}
