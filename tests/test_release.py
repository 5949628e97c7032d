"""A release has one version, which stands in agent/__init__.py."""

from __future__ import annotations

import contextlib
import io
import re
import tomllib

from agent import __version__
from agent.cli import main
from tests.chart import CHART, DAEMONSET, stamped
from tests.documents import DOCUMENTS, ROOT


def test_the_program_the_package_the_manifests_the_chart_and_the_changelog_name_one_version() -> None:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        main(["--version"])
    assert said.getvalue() == f"gpu-health-agent {__version__}\n"
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    assert tool["setuptools"]["dynamic"]["version"] == {"attr": "agent.__version__"}
    for name, text in stamped().items():
        assert __version__ in text
        assert (DAEMONSET / name).read_text() == text, "write it anew: make chart"
    released = re.findall(r"^## \[(.+?)\](?: - \d{4}-\d\d-\d\d)?$", DOCUMENTS["CHANGELOG.md"], re.MULTILINE)
    assert released[:2] == ["Unreleased", __version__]


def test_no_image_is_named_that_another_day_is_another_one() -> None:
    """The templates' own tag is a place that kustomize and the chart fill in."""
    assert "tag: latest" not in (CHART / "values.yaml").read_text().lower()
    assert "newtag: latest" not in (DAEMONSET / "base" / "kustomization.yaml").read_text().lower()
