"""``make package``: the image's archive, and the SBOM of what is in it."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

from agent import __version__
from tests import artifacts


def test_the_sbom_names_the_product_and_all_that_it_brings_and_no_tool(tmp_path: Path) -> None:
    artifacts.wheel(tmp_path)
    told = json.loads(artifacts.bill_of_materials(tmp_path).read_text())
    assert told["bomFormat"] == "CycloneDX"
    itself = told["metadata"]["component"]
    assert (itself["name"], itself["version"]) == ("gpu-health-agent", __version__)
    components = {one["purl"].partition("@")[0].removeprefix("pkg:pypi/") for one in told["components"]}
    assert {"kubernetes", "nvidia-ml-py", "prometheus-client", "structlog", "pydantic"} <= components
    assert not {"pip", "pytest", "cyclonedx-bom"} & components


def test_the_images_archive_has_the_versions_tag(tmp_path: Path) -> None:
    with tarfile.open(artifacts.image(tmp_path)) as archive:
        listed = archive.extractfile("manifest.json")
        assert listed
        (image,) = json.loads(listed.read())
    assert [tag.removeprefix("docker.io/library/") for tag in image["RepoTags"]] == [artifacts.tag()]
